from __future__ import annotations

import os
import socket

import pytest

from xenvirtio.xenstore.serve_poll import READABLE, WRITABLE, Poller


def test_who_asked_is_told_what_there_is() -> None:
    poller = Poller()
    told: list[int] = []
    here, there = socket.socketpair()
    with here, there:
        poller.ask(here.fileno(), READABLE | WRITABLE, told.append)
        poller.wait(0.0)
        assert told == [WRITABLE]
        there.send(b"x")
        poller.ask(here.fileno(), READABLE, told.append)
        poller.wait(1.0)
        assert told == [WRITABLE, READABLE]
        poller.ask(here.fileno(), 0, told.append)
        poller.ask(here.fileno(), 0, told.append)
        poller.wait(0.0)
        assert told == [WRITABLE, READABLE]
    poller.close()


@pytest.mark.parametrize("asked", [READABLE, WRITABLE])
def test_one_at_its_end_is_told_what_was_asked_for(asked: int) -> None:
    poller = Poller()
    told: list[int] = []
    here, there = socket.socketpair()
    with here:
        there.close()
        poller.ask(here.fileno(), asked, told.append)
        poller.wait(1.0)
    assert told == [asked]
    poller.close()


def test_one_given_up_by_another_in_the_same_round_is_not_told() -> None:
    poller = Poller()
    told: list[int] = []
    descriptors = [os.eventfd(1) for _ in range(2)]

    def give_up_the_other(number: int) -> None:
        told.append(number)
        poller.ask(descriptors[1 - number], 0, told.append)

    poller.ask(descriptors[0], READABLE, lambda events: give_up_the_other(0))
    poller.ask(descriptors[1], READABLE, lambda events: give_up_the_other(1))
    poller.wait(0.0)
    assert len(told) == 1
    for descriptor in descriptors:
        os.close(descriptor)
    poller.close()
