from __future__ import annotations

import errno
import select
import threading
from collections.abc import Iterator

import pytest

from xenvirtio.channels.argo import RING_BYTES, ArgoChannel
from xenvirtio.channels.argo_wake import TimerWake
from xenvirtio.errors import HypervisorError, UsageError
from xenvirtio.ids import ArgoPort, DomId
from xenvirtio.xen.capabilities import ArgoAddress

from .argo_host import DOM0, PORT, Two, two_domains


@pytest.fixture
def two() -> Iterator[Two]:
    with two_domains() as two:
        yield two


@pytest.fixture
def dom0(two: Two) -> Iterator[ArgoChannel]:
    with ArgoChannel.open(two.dom0, PORT, [two.domid]) as channel:
        yield channel


@pytest.fixture
def guest(two: Two) -> Iterator[ArgoChannel]:
    with ArgoChannel.open(two.guest, PORT, [DOM0]) as channel:
        yield channel


def is_readable(channel: ArgoChannel, timeout_s: float = 0) -> bool:
    poll = select.poll()
    poll.register(channel.fileno(), select.POLLIN)
    return bool(poll.poll(timeout_s * 1000))


def refused(error: int) -> pytest.RaisesExc[HypervisorError]:
    return pytest.raises(HypervisorError, check=lambda raised: raised.errno == error)


def test_messages_go_both_ways(two: Two, dom0: ArgoChannel, guest: ArgoChannel) -> None:
    assert not is_readable(dom0)
    assert guest.send(b"question", two.to_dom0, 5)
    assert is_readable(dom0)
    message = dom0.receive()
    assert message is not None
    assert (message.sender, message.kind, message.data) == (two.to_guest, 5, b"question")
    assert dom0.receive() is None
    assert not is_readable(dom0)
    assert dom0.send(b"answer", message.sender)
    answer = guest.receive()
    assert answer is not None
    assert (answer.sender, answer.kind, answer.data) == (two.to_dom0, 0, b"answer")


def test_the_longest_message(two: Two, dom0: ArgoChannel, guest: ArgoChannel) -> None:
    longest = bytes(range(256)) * 256
    assert dom0.message_max_bytes == 65440
    assert guest.send(longest[:65440], two.to_dom0)
    message = dom0.receive()
    assert message is not None
    assert message.data == longest[:65440]
    with refused(errno.EMSGSIZE):
        guest.send(longest[:65441], two.to_dom0)


def test_a_full_ring_and_back(two: Two, dom0: ArgoChannel, guest: ArgoChannel) -> None:
    sent = 0
    while guest.send(bytes(4000), two.to_dom0):
        sent += 1
    assert sent == 16  # as counted on real Xen
    assert not is_readable(guest)
    while dom0.receive() is not None:
        sent -= 1
    assert sent == 0
    assert is_readable(guest)
    assert guest.receive() is None
    assert guest.send(bytes(4000), two.to_dom0)


def test_a_sender_that_waits_is_woken_before_the_receiver_has_drained_all(
    two: Two, dom0: ArgoChannel, guest: ArgoChannel
) -> None:
    while guest.send(bytes(4000), two.to_dom0):
        pass
    for _ in range(9):
        dom0.receive()
    assert is_readable(guest)
    assert guest.send(bytes(4000), two.to_dom0)


def test_waiting_for_room_keeps_what_arrives_meanwhile(two: Two, dom0: ArgoChannel, guest: ArgoChannel) -> None:
    while guest.send(bytes(4000), two.to_dom0):
        pass
    dom0.send(b"meanwhile", two.to_guest)

    def drain() -> None:
        while dom0.receive() is not None:
            pass

    drainer = threading.Timer(0.1, drain)
    drainer.start()
    guest.send_wait(bytes(4000), two.to_dom0, timeout_s=10)
    drainer.join()
    assert is_readable(guest)
    message = guest.receive()
    assert message is not None
    assert message.data == b"meanwhile"
    assert guest.receive() is None
    assert not is_readable(guest)


def test_waiting_for_room_ends(two: Two, dom0: ArgoChannel, guest: ArgoChannel) -> None:
    while guest.send(bytes(4000), two.to_dom0):
        pass
    with refused(errno.EAGAIN):
        guest.send_wait(bytes(4000), two.to_dom0, timeout_s=0.05)
    dom0.close()
    with refused(errno.ECONNREFUSED):
        guest.send_wait(bytes(4000), two.to_dom0, timeout_s=10)


def test_refusals(two: Two, dom0: ArgoChannel, guest: ArgoChannel) -> None:
    with refused(errno.ECONNREFUSED):
        guest.send(b"", ArgoAddress(DOM0, ArgoPort(1)))
    with refused(errno.ESRCH):
        guest.send(b"", ArgoAddress(DomId(99), PORT))
    with refused(errno.EEXIST):
        ArgoChannel.open(two.dom0, PORT, [two.domid])
    with refused(errno.ESRCH):
        ArgoChannel.open(two.dom0, ArgoPort(1), [DomId(99)])
    with refused(errno.EINVAL):
        ArgoChannel.open(two.dom0, ArgoPort(1), [two.domid], ring_bytes=100)


def test_without_argo_the_error_says_what_to_do() -> None:
    with two_domains(argo=False) as two, pytest.raises(HypervisorError, match="argo=1 on Xen's command line"):
        ArgoChannel.open(two.dom0, PORT)


def test_silo_keeps_guests_apart() -> None:
    with two_domains(silo=True) as two:
        other = two.host.create_domain(memory_bytes=4096).domid
        with refused(errno.EPERM):
            ArgoChannel.open(two.guest, PORT, [other])
        with ArgoChannel.open(two.guest, PORT, [DOM0]) as channel, refused(errno.EPERM):
            channel.send(b"", ArgoAddress(other, PORT))


def test_one_that_floods_takes_no_more_than_its_turn(two: Two, dom0: ArgoChannel, guest: ArgoChannel) -> None:
    second = two.host.create_domain(memory_bytes=4096).domid
    dom0.add_partner(second)
    with ArgoChannel.open(two.host.open_hypervisor(second), PORT, [DOM0]) as polite:
        for _ in range(16):
            guest.send(bytes(4000), two.to_dom0)
        polite.send(b"one", two.to_dom0)
        first_two = {message.sender.domid for message in (dom0.receive(), dom0.receive()) if message is not None}
        assert first_two == {two.domid, second}


def test_a_partner_that_went_and_came_back(two: Two, dom0: ArgoChannel) -> None:
    two.host.destroy_domain(two.domid)
    assert dom0.receive() is None
    dom0.drop_partner(two.domid)
    reborn = two.host.create_domain(memory_bytes=4096, domid=two.domid)
    dom0.add_partner(reborn.domid)
    with ArgoChannel.open(two.host.open_hypervisor(reborn.domid), PORT, [DOM0]) as guest:
        assert guest.send(b"back", two.to_dom0)
        message = dom0.receive()
        assert message is not None
        assert message.data == b"back"


def test_closing_unregisters(two: Two) -> None:
    for _ in range(200):  # more than Xen's rings for a domain
        ArgoChannel.open(two.dom0, PORT, [two.domid]).close()
    channel = ArgoChannel.open(two.dom0, PORT, [two.domid])
    channel.close()
    channel.close()
    with pytest.raises(UsageError):
        channel.receive()


def test_a_killed_process_leaves_its_ring_free(two: Two) -> None:
    killed = two.host.open_hypervisor(DOM0)
    ArgoChannel.open(killed, PORT, [two.domid])
    with refused(errno.EEXIST):
        ArgoChannel.open(two.dom0, PORT, [two.domid])
    killed.close()
    ArgoChannel.open(two.dom0, PORT, [two.domid]).close()


def test_the_second_process_of_a_domain_looks_by_timer(two: Two, guest: ArgoChannel, dom0: ArgoChannel) -> None:
    other_port = ArgoPort(0x200)
    with ArgoChannel.open(two.dom0, other_port, [two.domid]) as second:
        assert guest.send(b"to the second", ArgoAddress(DOM0, other_port))
        assert is_readable(second, 5)
        message = second.receive()
        assert message is not None
        assert message.data == b"to the second"
        assert second.wait_readable(5)


def test_a_timer_ticks() -> None:
    wake = TimerWake(0.001)
    poll = select.poll()
    poll.register(wake.fileno(), select.POLLIN)
    assert poll.poll(5000)
    assert wake.clear()
    slow = TimerWake(3600)
    assert not slow.clear()
    wake.close()
    wake.close()
    slow.close()


def test_a_ring_that_makes_no_sense_is_dropped_and_the_others_go_on(
    two: Two, dom0: ArgoChannel, guest: ArgoChannel
) -> None:
    second = two.host.create_domain(memory_bytes=4096).domid
    dom0.add_partner(second)
    guest.send(b"x", two.to_dom0)
    dom0._partners[two.domid].ring._length_bytes = 32  # as if the frames were somebody else's by now
    with ArgoChannel.open(two.host.open_hypervisor(second), PORT, [DOM0]) as polite:
        polite.send(b"fine", two.to_dom0)
        message = dom0.receive()
        assert message is not None
        assert message.data == b"fine"
    assert dom0.partners == [second]


def test_the_default_ring_is_whole_pages() -> None:
    assert (RING_BYTES + 64) % 4096 == 0
