"""A driver's domain whose Argo ring is of no use ends nobody's service, its own later one included."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.channels.argo_host import DOM0, PORT, two_domains
from xenvirtio.channels.argo import ArgoChannel
from xenvirtio.daemon.msg_argo import ArgoCarrier
from xenvirtio.daemon.msg_service import BusService
from xenvirtio.devices.block.device import BlockDevice
from xenvirtio.resources.file import open_disk
from xenvirtio.virtio.msg_driver_bus import DriverBus


@pytest.mark.parametrize("ring_bytes", [48, 80])
def test_a_ring_too_small_for_an_answer(tmp_path: Path, ring_bytes: int) -> None:
    image = tmp_path / "disk"
    image.write_bytes(bytes(1 << 20))
    with two_domains() as two:
        service = BusService(ArgoCarrier(two.dom0, two.domid, PORT), "bus")
        service.add("disk", BlockDevice(open_disk(image)), 0)
        service.start()
        with ArgoChannel.open(two.guest, PORT, [DOM0], ring_bytes=ring_bytes) as hostile:
            for _ in range(5):
                hostile.send_wait(b"anything", two.to_dom0, timeout_s=20)
                time.sleep(0.05)
            assert service.is_running
        front = ArgoCarrier(two.guest, DOM0, PORT)
        bus = DriverBus(front.link, lambda timeout: time.sleep(min(timeout, 0.02)))
        bus.connect(30)
        service.close()  # raises what ended the thread
        front.close()
