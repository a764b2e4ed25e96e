"""A gntdev that checks every 24-byte segment as Linux and Xen do, over pages kept in a dict.

Source: Linux include/uapi/xen/gntdev.h (struct gntdev_grant_copy_segment), drivers/xen/gntdev.c.
"""

from __future__ import annotations

import ctypes
import errno
import struct
from collections.abc import Sequence
from dataclasses import dataclass

from xenvirtio.errors import HypervisorError
from xenvirtio.ids import PAGE_SIZE, DomId, GrantRef
from xenvirtio.xen.capabilities import Mapping

SEGMENT_BYTES = 24
SOURCE_IS_REFERENCE = 1
DESTINATION_IS_REFERENCE = 2
STATUS_OKAY = 0
STATUS_BAD_REFERENCE = -3
STATUS_PERMISSION_DENIED = -8


@dataclass(frozen=True, slots=True)
class Segment:
    """One segment as the backend sent it."""

    to_guest: bool
    host: int
    domid: int
    reference: int
    offset: int
    length_bytes: int


class FakeGrants:
    """The `Grants` capability with one granting domain. `calls` keeps the segments of each call."""

    def __init__(self, domid: int) -> None:
        self.domid = domid
        self.pages: dict[int, bytearray] = {}
        self.read_only: set[int] = set()
        self.calls: list[list[Segment]] = []
        self.fail_next: int | None = None

    def grant(self, reference: int, contents: bytes = b"", *, writable: bool = True) -> bytearray:
        """Grant one page that starts with `contents`; return it, live."""
        self.pages[reference] = bytearray(contents.ljust(PAGE_SIZE, b"\0"))
        if not writable:
            self.read_only.add(reference)
        return self.pages[reference]

    def copy(self, segments_address: int, count: int) -> None:
        segments = [self._parse(segments_address + SEGMENT_BYTES * index) for index in range(count)]
        self.calls.append(segments)
        if self.fail_next is not None:
            error, self.fail_next = self.fail_next, None
            raise HypervisorError("GRANT_COPY", error, domid=self.domid)
        for index, segment in enumerate(segments):
            status = self._carry_out(segment)
            ctypes.c_int16.from_address(segments_address + SEGMENT_BYTES * index + 20).value = status

    def _parse(self, address: int) -> Segment:
        raw = ctypes.string_at(address, SEGMENT_BYTES)
        length, flags, status, pad = struct.unpack_from("<HHhH", raw, 16)
        if flags not in (SOURCE_IS_REFERENCE, DESTINATION_IS_REFERENCE):
            raise HypervisorError("GRANT_COPY", errno.EINVAL)
        to_guest = flags == DESTINATION_IS_REFERENCE
        (host,) = struct.unpack_from("<Q", raw, 0 if to_guest else 8)
        reference, offset, domid = struct.unpack_from("<IHH", raw, 8 if to_guest else 0)
        assert status == 0, "a status left from an earlier call reads as a failure"
        assert pad == 0
        assert host
        assert length
        if offset + length > PAGE_SIZE:
            raise HypervisorError("GRANT_COPY", errno.EINVAL)
        return Segment(to_guest, host, domid, reference, offset, length)

    def _carry_out(self, segment: Segment) -> int:
        page = self.pages.get(segment.reference)
        if page is None or segment.domid != self.domid:
            return STATUS_BAD_REFERENCE
        if segment.to_guest and segment.reference in self.read_only:
            return STATUS_PERMISSION_DENIED
        place = slice(segment.offset, segment.offset + segment.length_bytes)
        if segment.to_guest:
            page[place] = ctypes.string_at(segment.host, segment.length_bytes)
        else:
            ctypes.memmove(segment.host, bytes(page[place]), segment.length_bytes)
        return STATUS_OKAY

    def map(self, domid: DomId, references: Sequence[GrantRef], *, writable: bool) -> Mapping:
        raise AssertionError("data goes by copy, nothing is mapped")

    def close(self) -> None:
        pass
