"""One process, several buses: the end of one is not the end of the others."""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.daemon.test_msg_service import WINDOW, wait_until, works
from xenvirtio.daemon import msg_serve
from xenvirtio.daemon.msg_carrier import LocalCarrier, local_carriers
from xenvirtio.daemon.msg_serve import Disk, MessageServer
from xenvirtio.errors import HypervisorError


class FailingCarrier:
    """A carrier whose event channel fails once it is told to."""

    def __init__(self, carrier: LocalCarrier) -> None:
        self._carrier = carrier
        self.fails = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._carrier, name)

    def take_events(self) -> None:
        self._carrier.take_events()
        if self.fails:
            raise HypervisorError("unmask", errno.EIO)


def test_a_bus_whose_carrier_fails_ends_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disks = {}
    fronts, backs = [], []
    for name in ("one", "two"):
        (tmp_path / name).write_bytes(bytes(1 << 20))
        disks[name] = Disk(tmp_path / name)
        front, back = local_carriers(WINDOW)
        fronts.append(front)
        backs.append(FailingCarrier(back))
    buses = [
        SimpleNamespace(
            name=name,
            devices=[SimpleNamespace(name=name, devid=0, peer="guest")],
            open=lambda *_, back=back, **__: back,
        )
        for name, back in zip(disks, backs, strict=True)
    ]
    monkeypatch.setattr(msg_serve, "message_buses", lambda *_: buses)
    server = MessageServer(None, SimpleNamespace(), disks)  # type: ignore[arg-type]
    raised: list[HypervisorError] = []

    def run() -> None:
        try:
            server.run()
        except HypervisorError as error:
            raised.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    assert works(fronts[0])
    services = list(server._services)
    backs[0].fails = True
    os.eventfd_write(backs[0].fileno(), 1)
    wait_until(lambda: not services[0].is_running)
    thread.join(2 * msg_serve.LOOK_S)
    assert thread.is_alive()
    assert works(fronts[1])
    server.stop()
    thread.join(30)
    assert not thread.is_alive()
    assert [error.errno for error in raised] == [errno.EIO]
    for front in fronts:
        front.close()
