"""How a device reaches what its driver put into memory, where no whole guest is mapped: a window, or grants."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from xenvirtio.daemon.ring_mapping import RingMapping
from xenvirtio.errors import GuestError, HypervisorError
from xenvirtio.ids import DomId, Gfn
from xenvirtio.memory.address_space import AddressSpace
from xenvirtio.memory.grants import GrantMemory
from xenvirtio.memory.guest_memory import GuestMemory
from xenvirtio.memory.regions import RegionMemory, RegionSource, RegionTable
from xenvirtio.virtio.device import QueueConfiguration
from xenvirtio.virtqueue.layout import avail_bytes, desc_bytes, used_bytes
from xenvirtio.xen.capabilities import Grants, Mapping


class Rings(Protocol):
    """The areas of a queue at host addresses, until `close`."""

    @property
    def desc(self) -> int: ...
    @property
    def avail(self) -> int: ...
    @property
    def used(self) -> int: ...
    def close(self) -> None: ...


class DmaSpace(Protocol):
    """What one driver's DMA addresses lead to."""

    def memory(self) -> GuestMemory:
        """Guest memory for one queue."""
        ...

    def map_rings(self, index: int, configuration: QueueConfiguration) -> Rings:
        """Map the areas of queue `index`.

        Raises:
            GuestError: they are not in memory that the driver may use.
        """
        ...


@dataclass(frozen=True, slots=True)
class _WindowRings:
    desc: int
    avail: int
    used: int

    def close(self) -> None:
        """Nothing to do: the window stays mapped."""


class WindowDma:
    """DMA addresses are offsets, from `start` on, into a window of `length_bytes` at host address `base`."""

    def __init__(self, base: int, start: int, length_bytes: int) -> None:
        self._source = RegionSource(RegionTable([(start, length_bytes - start, base + start, True)]))

    def memory(self) -> GuestMemory:
        return RegionMemory(self._source)

    def map_rings(self, index: int, configuration: QueueConfiguration) -> Rings:
        size = configuration.size
        memory = self.memory()
        places = []
        for address, length in (
            (configuration.desc, desc_bytes(size)),
            (configuration.driver, avail_bytes(size)),
            (configuration.device, used_bytes(size)),
        ):
            place = memory.locate(address, length, True)
            if place == 0 or memory.run < length:
                raise GuestError(f"ring area {address:#x} is outside the shared region", queue_index=index)
            places.append(place)
        return _WindowRings(*places)


class GrantDma:
    """DMA addresses carry grant references of domain `domid`; plain addresses lead nowhere."""

    def __init__(self, grants: Grants, domid: DomId) -> None:
        self._grants = grants
        self._domid = domid

    def memory(self) -> GuestMemory:
        return AddressSpace(GuestMemory(), GrantMemory(self._grants, self._domid))

    def map_rings(self, index: int, configuration: QueueConfiguration) -> Rings:
        return RingMapping(_NoForeignMemory(), self._grants, self._domid, index, configuration)


class _NoForeignMemory:
    """For a backend without privilege over its frontend."""

    def map_frames(self, domid: DomId, frames: Sequence[Gfn], *, writable: bool) -> tuple[Mapping, list[int]]:
        raise HypervisorError("map foreign memory", 1, domid=domid, hint="the driver has to grant its memory")

    def close(self) -> None: ...
