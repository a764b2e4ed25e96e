"""Driver side of a block device: builds requests on a virtqueue and takes the results.

    driver = BlockDriver(queue, allocator, kick)
    driver.write(8, b"x" * 512)            # one request, waited for
    a = driver.submit_read(0, 4096)        # several in flight
    b = driver.submit_flush()
    driver.kick()
    for completion in driver.collect(): ...

It knows no transport: `kick` and `wait` are the caller's.
"""

from __future__ import annotations

import ctypes
import struct
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from xenvirtio.devices.block.layout import (
    HEADER_BYTES,
    ID_BYTES,
    RANGE_F_UNMAP,
    S_OK,
    SECTOR_BYTES,
    T_DISCARD,
    T_FLUSH,
    T_GET_ID,
    T_IN,
    T_OUT,
    T_WRITE_ZEROES,
)
from xenvirtio.errors import PeerProtocolError
from xenvirtio.virtqueue.driver import Buffer, DriverQueue

_HEADER = struct.Struct("<IIQ")
_RANGE = struct.Struct("<QII")

STATUS_OFFSET = HEADER_BYTES
TABLE_OFFSET = 32
NO_STATUS = 0xFF
"""What the status byte holds before the device writes it."""


class PageAllocator(Protocol):
    """Memory that the device can reach."""

    def allocate(self, length_bytes: int) -> tuple[int, int]:
        """Return (DMA address, host address) of zeroed pages, contiguous in both. They are never given back."""
        ...


@dataclass(frozen=True, slots=True)
class Completion:
    """A request that the device has finished. `data` is what was read, `written` the used length."""

    request: int
    status: int
    data: bytes
    written: int


@dataclass(frozen=True, slots=True)
class _InFlight:
    request: int
    control: tuple[int, int]
    data: tuple[int, int] | None
    data_bytes: int
    reply_bytes: int


class BlockDriver:
    """One queue's worth of driver. Buffers are taken from `allocator` once and used again.

    `kick` tells the device of new requests, `wait` blocks until it may have finished some. Data goes in buffers of
    at most `segment_bytes`; with `indirect` every request is one indirect table.
    """

    def __init__(
        self,
        queue: DriverQueue,
        allocator: PageAllocator,
        kick: Callable[[], None],
        *,
        wait: Callable[[], None] = lambda: time.sleep(0),
        segment_bytes: int = 1 << 20,
        indirect: bool = False,
    ) -> None:
        self._queue = queue
        self._allocator = allocator
        self._kick = kick
        self._wait = wait
        self._segment_bytes = segment_bytes
        self._indirect = indirect
        self._next_request = 0
        self._free: dict[int, list[tuple[int, int]]] = {}
        self._early: list[Completion] = []

    def submit(self, kind: int, sector: int = 0, *, payload: bytes = b"", reply_bytes: int = 0) -> int:
        """Make a request of any type available to the device; return its number. `kick` comes afterwards.

        Raises:
            QueueFullError: no descriptors are left; collect first.
        """
        length = len(payload) or reply_bytes
        segments = -(-length // self._segment_bytes)
        control = self._take(TABLE_OFFSET + 16 * (segments + 2))
        data = self._take(length) if length else None
        dma, host = control
        ctypes.memmove(host, _HEADER.pack(kind, 0, sector) + bytes([NO_STATUS]), HEADER_BYTES + 1)
        buffers: list[Buffer] = []
        if data is not None:
            ctypes.memmove(data[1], payload, len(payload))
            for start in range(0, length, self._segment_bytes):
                buffers.append((data[0] + start, min(self._segment_bytes, length - start)))
        readable = [(dma, HEADER_BYTES)] + (buffers if payload else [])
        writable = ([] if payload else buffers) + [(dma + STATUS_OFFSET, 1)]
        token = _InFlight(self._next_request, control, data, length, reply_bytes)
        try:
            if self._indirect:
                self._queue.offer_indirect(host + TABLE_OFFSET, dma + TABLE_OFFSET, readable, writable, token)
            else:
                self._queue.offer(readable, writable, token)
        except Exception:
            self._give_back(token)
            raise
        self._next_request += 1
        return token.request

    def submit_read(self, sector: int, length_bytes: int) -> int:
        return self.submit(T_IN, sector, reply_bytes=length_bytes)

    def submit_write(self, sector: int, data: bytes) -> int:
        return self.submit(T_OUT, sector, payload=data)

    def submit_flush(self) -> int:
        return self.submit(T_FLUSH)

    def submit_discard(self, ranges: Sequence[tuple[int, int]]) -> int:
        """Discard (first sector, sectors) ranges."""
        return self.submit(T_DISCARD, payload=b"".join(_RANGE.pack(first, count, 0) for first, count in ranges))

    def submit_write_zeroes(self, ranges: Sequence[tuple[int, int]], *, unmap: bool = False) -> int:
        flags = RANGE_F_UNMAP if unmap else 0
        return self.submit(T_WRITE_ZEROES, payload=b"".join(_RANGE.pack(*entry, flags) for entry in ranges))

    def submit_get_id(self) -> int:
        return self.submit(T_GET_ID, reply_bytes=ID_BYTES)

    def kick(self) -> None:
        """Tell the device of what was submitted, if it wants to hear of it."""
        if self._queue.needs_kick():
            self._kick()

    def collect(self) -> list[Completion]:
        """Take the finished requests, without waiting."""
        done = self._early
        self._early = []
        for token, written in self._queue.collect():
            assert isinstance(token, _InFlight)
            status = ctypes.string_at(token.control[1] + STATUS_OFFSET, 1)[0]
            data = b""
            if token.data is not None and token.reply_bytes and status == S_OK:
                if not 1 <= written <= token.reply_bytes + 1:
                    raise PeerProtocolError(f"device says {written} bytes written of {token.reply_bytes} and a status")
                data = ctypes.string_at(token.data[1], written - 1)
            self._give_back(token)
            done.append(Completion(token.request, status, data, written))
        return done

    def complete(self, request: int) -> Completion:
        """Kick, and wait for one request; others that finish meanwhile stay for `collect`."""
        self.kick()
        while True:
            self._early = self.collect()
            for completion in self._early:
                if completion.request == request:
                    self._early.remove(completion)
                    return completion
            self._wait()

    def read(self, sector: int, length_bytes: int) -> Completion:
        return self.complete(self.submit_read(sector, length_bytes))

    def write(self, sector: int, data: bytes) -> Completion:
        return self.complete(self.submit_write(sector, data))

    def flush(self) -> Completion:
        return self.complete(self.submit_flush())

    def discard(self, ranges: Sequence[tuple[int, int]]) -> Completion:
        return self.complete(self.submit_discard(ranges))

    def write_zeroes(self, ranges: Sequence[tuple[int, int]], *, unmap: bool = False) -> Completion:
        return self.complete(self.submit_write_zeroes(ranges, unmap=unmap))

    def get_id(self) -> Completion:
        return self.complete(self.submit_get_id())

    def _take(self, length_bytes: int) -> tuple[int, int]:
        free = self._free.setdefault(_size_class(length_bytes), [])
        return free.pop() if free else self._allocator.allocate(_size_class(length_bytes))

    def _give_back(self, token: _InFlight) -> None:
        segments = -(-token.data_bytes // self._segment_bytes)
        self._free[_size_class(TABLE_OFFSET + 16 * (segments + 2))].append(token.control)
        if token.data is not None:
            self._free[_size_class(token.data_bytes)].append(token.data)


def _size_class(length_bytes: int) -> int:
    return 1 << max(length_bytes - 1, SECTOR_BYTES - 1).bit_length()
