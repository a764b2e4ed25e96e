"""A device of plain 32-bit registers behind an IOREQ server; as a program, a backend process that can be killed.

    register_backend.py SOCKET DOMID SERVER [stall]

SERVER is `new` or the number of a server to adopt. With `stall` it takes the first request, says so, and does no more.
"""

from __future__ import annotations

import ctypes
import select
import struct
import sys
import threading

from xenvirtio.ids import DomId, RemotePort, ServerId
from xenvirtio.xen.capabilities import Hypervisor
from xenvirtio.xen.emulated import connect_emulated

BASE = 0x200_0000
LENGTH = 0x200

_SLOT = struct.Struct("<QQIIIHBB")
READY, INPROCESS, RESPONSE_READY = 1, 2, 3
INVALIDATE = 8


class RegisterBackend:
    """Serves [BASE, BASE + LENGTH) of one guest; every register keeps what was written to it last."""

    def __init__(self, hypervisor: Hypervisor, domid: DomId, adopt: ServerId | None = None) -> None:
        self.model = hypervisor.open_device_model(domid)
        self.events = hypervisor.open_event_channels(domid)
        self.registers: dict[int, int] = {}
        self.requests: list[tuple[int, int, bool]] = []  # type, address, is_read
        self.server = self.model.create_ioreq_server() if adopt is None else adopt
        self.page = self.model.map_ioreq_page(self.server)
        if adopt is None:
            self.model.map_io_range(self.server, BASE, BASE + LENGTH - 1)
            self.model.set_server_state(self.server, enabled=True)
        self.vcpus = self.model.nr_vcpus()
        self.ports = [self.events.bind_interdomain(domid, self.remote_port(i)) for i in range(self.vcpus)]
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def remote_port(self, vcpu: int) -> RemotePort:
        return RemotePort(ctypes.c_uint32.from_address(self.page.address + 32 * vcpu + 24).value)

    def state(self, vcpu: int) -> int:
        return ctypes.c_uint8.from_address(self.page.address + 32 * vcpu + 30).value & 0xF

    def set_state(self, vcpu: int, state: int) -> None:
        bits = ctypes.c_uint8.from_address(self.page.address + 32 * vcpu + 30)
        bits.value = (bits.value & 0xF0) | state

    def answer_all(self) -> None:
        """Answer what is waiting, INPROCESS included: its owner is dead."""
        for vcpu in range(self.vcpus):
            if self.state(vcpu) in (READY, INPROCESS):
                self._answer(vcpu)

    def _answer(self, vcpu: int) -> None:
        self.set_state(vcpu, INPROCESS)
        slot = self.page.address + 32 * vcpu
        address, data, _, _, _, _, bits, kind = _SLOT.unpack(ctypes.string_at(slot, 32))
        is_read = bool(bits & 0x20)
        self.requests.append((kind, address, is_read))
        if kind != INVALIDATE:
            if is_read:
                ctypes.c_uint64.from_address(slot + 8).value = self.registers.get(address, 0)
            else:
                self.registers[address] = data
        self.set_state(vcpu, RESPONSE_READY)
        self.events.notify(self.ports[vcpu])

    def wait_event(self, timeout_s: float = 5.0) -> bool:
        poll = select.poll()
        poll.register(self.events.fileno(), select.POLLIN)
        return bool(poll.poll(timeout_s * 1000))

    def serve(self) -> None:
        self.answer_all()
        while not self._stop.is_set():
            if self.wait_event(0.05):
                self.events.unmask(self.events.read())
                self.answer_all()

    def start(self) -> RegisterBackend:
        self._thread = threading.Thread(target=self.serve)
        self._thread.start()
        return self

    def stop(self) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join()

    def close(self) -> None:
        self.stop()
        self.events.close()
        self.page.close()
        self.model.close()


def main(path: str, domid: str, server: str, *mode: str) -> None:
    adopt = None if server == "new" else ServerId(int(server))
    backend = RegisterBackend(connect_emulated(path), DomId(int(domid)), adopt)
    print("ready", backend.server, flush=True)
    if not mode:
        backend.serve()
    while True:
        backend.wait_event(60)
        backend.events.unmask(backend.events.read())
        for vcpu in range(backend.vcpus):
            if backend.state(vcpu) == READY:
                backend.set_state(vcpu, INPROCESS)
                print("stalled", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
