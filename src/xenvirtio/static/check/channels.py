"""Event channels: ports that are taken twice, contradict each other or do not exist."""

from __future__ import annotations

from collections.abc import Iterator

from xenvirtio.static.check.finding import Finding, error
from xenvirtio.static.plan import PORT_MAX
from xenvirtio.static.system import ChannelPair, System

XENSTORE_PORT = 1
"""The first port that Xen allocates in a domain with XenStore (alloc_xenstore_evtchn)."""


def check_channels(system: System) -> Iterator[Finding]:
    taken: dict[tuple[str, int], ChannelPair] = {}
    for channel in system.channels:
        for end in channel.ends:
            yield from _check_end(system, channel, end.domain, end.port)
        before = {
            taken[end.domain, end.port].name: taken[end.domain, end.port]
            for end in channel.ends
            if (end.domain, end.port) in taken
        }
        for other in before.values():
            yield _taken_twice(channel, other)
        for end in channel.ends:
            taken.setdefault((end.domain, end.port), channel)


def _taken_twice(channel: ChannelPair, other: ChannelPair) -> Finding:
    shared = [end for end in channel.ends if end in other.ends]
    if len(shared) == 2:
        message = "both describe one and the same channel; one table describes both of its ends: delete the other"
    else:
        (end,) = shared
        mine, theirs = channel.peer_of(end.domain), other.peer_of(end.domain)
        message = (
            f"port {end.port} of {end.domain} is joined to port {mine.port} of {mine.domain} here and to port"
            f" {theirs.port} of {theirs.domain} there; a port has one other end"
        )
    return error("port-twice", f"{channel.where} ends", f"{other.where} ends", message)


def _check_end(system: System, channel: ChannelPair, name: str, port: int) -> Iterator[Finding]:
    domain = system.description.domain(name)
    place = f"{channel.where} ends.{name}"
    if not 1 <= port <= PORT_MAX:
        yield error(
            "port-range",
            place,
            "Xen's event channels",
            f"port {port} does not exist; a domain built by Xen has 1 to {PORT_MAX}",
        )
    if not domain.enhanced.has_channels:
        yield error(
            "no-channels",
            place,
            f"{domain.where} enhanced",
            f'{name} has no event channels with "{domain.enhanced.value}"; "no-xenstore" is the least that has them',
        )
    if port == XENSTORE_PORT and domain.enhanced.has_xenstore and not domain.is_dom0:
        yield error(
            "port-xenstore",
            place,
            f"{domain.where} enhanced",
            f'port {port} is XenStore\'s with "{domain.enhanced.value}"; take one from 8 on, or leave it out',
        )
