"""Device-model operations on one guest through privcmd."""

from __future__ import annotations

from xenvirtio.ids import PAGE_SIZE, DomId, ServerId, Spi
from xenvirtio.xen import libc
from xenvirtio.xen.linux.dm_op import IO_RANGE_MEMORY, DmOp, Op, set_irq_level
from xenvirtio.xen.linux.privcmd import IOREQ_FRAME_SYNCHRONOUS, RESOURCE_IOREQ_SERVER, PreparedDmOp, Privcmd
from xenvirtio.xen.mapping import OwnedMapping


class LinuxDeviceModel:
    """`DeviceModel` over one privcmd descriptor."""

    def __init__(self, privcmd: Privcmd) -> None:
        self._privcmd = privcmd
        self._interrupts: dict[tuple[Spi, int], PreparedDmOp] = {}

    @property
    def domid(self) -> DomId:
        return self._privcmd.domid

    def nr_vcpus(self) -> int:
        answer = self._privcmd.dm_op("nr_vcpus", DmOp(op=Op.NR_VCPUS))
        return int(answer.u.nr_vcpus.vcpus)

    def create_ioreq_server(self) -> ServerId:
        answer = self._privcmd.dm_op("create_ioreq_server", DmOp(op=Op.CREATE_IOREQ_SERVER))
        return ServerId(answer.u.create_ioreq_server.id)

    def map_io_range(self, server: ServerId, start: int, end: int) -> None:
        self._privcmd.dm_op("map_io_range", _range(Op.MAP_IO_RANGE, server, start, end))

    def unmap_io_range(self, server: ServerId, start: int, end: int) -> None:
        self._privcmd.dm_op("unmap_io_range", _range(Op.UNMAP_IO_RANGE, server, start, end))

    def set_server_state(self, server: ServerId, *, enabled: bool) -> None:
        request = DmOp(op=Op.SET_IOREQ_SERVER_STATE)
        request.u.set_ioreq_server_state.id = server
        request.u.set_ioreq_server_state.enabled = enabled
        self._privcmd.dm_op("set_ioreq_server_state", request)

    def destroy_ioreq_server(self, server: ServerId) -> None:
        request = DmOp(op=Op.DESTROY_IOREQ_SERVER)
        request.u.destroy_ioreq_server.id = server
        self._privcmd.dm_op("destroy_ioreq_server", request)

    def map_ioreq_page(self, server: ServerId) -> OwnedMapping:
        address = self._privcmd.map_resource("map_ioreq_page", RESOURCE_IOREQ_SERVER, server, IOREQ_FRAME_SYNCHRONOUS)
        return OwnedMapping(address, PAGE_SIZE, lambda: libc.munmap(address, PAGE_SIZE))

    def set_irq_level(self, irq: Spi, level: int) -> None:
        prepared = self._interrupts.get((irq, level))
        if prepared is None:
            prepared = self._interrupts[irq, level] = PreparedDmOp(self.domid, set_irq_level(irq, level))
        self._privcmd.issue("set_irq_level", prepared)

    def open_irqfd(self, irq: Spi) -> int | None:
        return self._privcmd.open_irqfd(set_irq_level(irq, 1))

    def close(self) -> None:
        self._privcmd.close()


def _range(op: Op, server: ServerId, start: int, end: int) -> DmOp:
    request = DmOp(op=op)
    arguments = request.u.io_range
    arguments.id, arguments.type, arguments.start, arguments.end = server, IO_RANGE_MEMORY, start, end
    return request
