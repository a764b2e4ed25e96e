#!/usr/bin/python3
"""One end of the story of `dom0less-boot`, in a guest or in dom0: what the plan says is tried byte by byte.

`left` fills every region and tells the other ends by their channels; `right` and dom0 verify what they find, answer by
filling it anew and tell back; `left` verifies that. Then `left` times how long an event to `right` and back takes.
Only the plan is read by our own code: memory is mapped and events are sent here with plain system calls.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import random
import select
import statistics
import struct
import time

from xenvirtio.static.plan import Plan, load_plan

REGIONS = {"pair": ("hosted", "heap", "owned"), "up": ("dom0left",)}
"""Channel -> the regions that its two ends share."""

ROUNDS = 200
PING, PONG = 8, 16
"""Where in `hosted` the two ends count their rounds, when its content has been verified."""

WAIT_S = 180.0
NOTIFY, BIND_STATIC = 0x44504, 0x44507
"""IOCTL_EVTCHN_NOTIFY, IOCTL_EVTCHN_BIND_STATIC (linux/include/uapi/xen/evtchn.h)."""


class Channel:
    """A static event channel: bound once, for the life of the process."""

    def __init__(self, port: int) -> None:
        self._port = struct.pack("I", port)
        self._fd = os.open("/dev/xen/evtchn", os.O_RDWR | os.O_CLOEXEC)
        fcntl.ioctl(self._fd, BIND_STATIC, self._port)

    def notify(self) -> None:
        fcntl.ioctl(self._fd, NOTIFY, self._port)

    def wait(self) -> None:
        ready, _, _ = select.select([self._fd], [], [], WAIT_S)
        if not ready:
            raise TimeoutError("no event")
        os.write(self._fd, os.read(self._fd, 4))  # what was read is masked until it is written back


def pattern(identifier: str, turn: int, size: int) -> bytes:
    """What fills a region in a turn (1, 2): the turn's number first, then bytes of which each has its place."""
    return struct.pack("<Q", turn) + random.Random(f"{identifier} {turn}").randbytes(size - 8)


def open_regions(plan: Plan, channel: str) -> dict[str, mmap.mmap]:
    """The regions of a channel, mapped by /dev/mem."""
    fd = os.open("/dev/mem", os.O_RDWR | os.O_CLOEXEC)
    found = {name: plan.region(name) for name in REGIONS[channel]}
    return {name: mmap.mmap(fd, region.size_bytes, offset=region.address) for name, region in found.items()}


def fill(regions: dict[str, mmap.mmap], turn: int) -> None:
    """The number of the turn goes last: who sees it finds the rest."""
    for name, memory in regions.items():
        content = pattern(name, turn, len(memory))
        memory[8:] = content[8:]
        memory[:8] = content[:8]


def verify(channel: Channel, regions: dict[str, mmap.mmap], turn: int) -> None:
    """Wait until the other end has filled all regions, and compare. Raises ValueError with the first wrong byte."""
    for name, memory in regions.items():
        wait_word(channel, memory, 0, turn)
        expected, found = pattern(name, turn, len(memory)), memory[:]
        if found != expected:
            place = next(i for i, (a, b) in enumerate(zip(expected, found, strict=True)) if a != b)
            raise ValueError(f"{name}: byte {place:#x} is {found[place]:#x}, {expected[place]:#x} was written")
        print(f"GUEST: {name} turn {turn} verified {len(memory)}", flush=True)


def wait_word(channel: Channel, memory: mmap.mmap, offset: int, value: int) -> None:
    """Wait until the other end has written a word. An event says no more than "look": binding alone gives one."""
    while struct.unpack_from("<Q", memory, offset)[0] != value:
        channel.wait()


def lead(plan: Plan) -> None:
    """What `left` does."""
    channels = {name: Channel(plan.channel(name).port) for name in REGIONS}
    regions = {name: open_regions(plan, name) for name in REGIONS}
    for name, channel in channels.items():
        fill(regions[name], 1)
        channel.notify()
    for name, channel in channels.items():
        verify(channel, regions[name], 2)
    channel, memory = channels["pair"], regions["pair"]["hosted"]
    times = []
    for number in range(1, ROUNDS + 1):
        started = time.perf_counter()
        struct.pack_into("<Q", memory, PING, number)
        channel.notify()
        wait_word(channel, memory, PONG, number)
        times.append(time.perf_counter() - started)
    print(f"GUEST: round trip median {statistics.median(times) * 1e6:.0f} us", flush=True)


def answer(plan: Plan, name: str) -> None:
    """What the others do."""
    channel = Channel(plan.channel(name).port)
    regions = open_regions(plan, name)
    verify(channel, regions, 1)
    fill(regions, 2)
    channel.notify()
    for number in range(1, ROUNDS + 1 if name == "pair" else 1):
        wait_word(channel, regions["hosted"], PING, number)
        struct.pack_into("<Q", regions["hosted"], PONG, number)
        channel.notify()


def main() -> None:
    plan = load_plan()
    print(f"GUEST: {plan.name} is domain {plan.domid}, {os.cpu_count()} processors", flush=True)
    match plan.name:
        case "left":
            lead(plan)
        case "right":
            answer(plan, "pair")
        case _:
            answer(plan, "up")
    print(f"GUEST: {plan.name} is done", flush=True)


if __name__ == "__main__":
    main()
