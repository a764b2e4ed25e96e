"""What a guest's kernel said while something happened to its disk."""

from __future__ import annotations

import re

from xenvirtio.lab.toolstack import Guest

_HARMLESS = re.compile(
    r"EXT4-fs .*(mounted filesystem|unmounting filesystem|orphan cleanup)|drop_caches|random: crng"
    r"|hrtimer: interrupt took|clocksource: |hogged CPU"
)
"""`orphan cleanup` comes with every read-only mount of a fresh file system, on a loop device as well; the last three
are about the speed of an emulated processor on a busy machine."""


class KernelLog:
    """Remembers where the log ended, to see what came after."""

    def __init__(self, guest: Guest) -> None:
        self._guest = guest
        self._lines = len(_read(guest))

    def new_lines(self) -> list[str]:
        """Lines since then, but what a healthy kernel says of its file systems."""
        return [line for line in _read(self._guest)[self._lines :] if not _HARMLESS.search(line)]

    def check_silent(self) -> None:
        """Raises AssertionError when the kernel said anything: it noticed something."""
        lines = self.new_lines()
        assert not lines, f"guest {self._guest.name}'s kernel noticed something: {' / '.join(lines)}"


def _read(guest: Guest) -> list[str]:
    return guest.run("dmesg").output.splitlines()
