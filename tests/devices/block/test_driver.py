from __future__ import annotations

import pytest

from tests.devices.block.rig import Rig, pattern
from xenvirtio.devices.block.driver import BlockDriver
from xenvirtio.devices.block.layout import S_OK, T_GET_ID
from xenvirtio.errors import PeerProtocolError
from xenvirtio.memory.raw import store_u8
from xenvirtio.virtqueue.driver import QueueFullError


def test_requests_in_flight_are_told_apart() -> None:
    rig = Rig()
    data = {rig.driver.submit_write(n, pattern(512, n)): n for n in range(5)}
    flush = rig.driver.submit_flush()
    assert rig.driver.collect() == []
    assert rig.driver.complete(flush).status == S_OK
    assert sorted(c.request for c in rig.driver.collect()) == sorted(data)
    assert rig.disk()[: 5 * 512] == b"".join(pattern(512, n) for n in range(5))


def test_buffers_are_used_again() -> None:
    rig = Rig(guest_bytes=64 * 1024)
    for n in range(100):
        rig.driver.write(n, pattern(4096, n))
        assert rig.driver.read(n, 4096).data == pattern(4096, n)


def test_a_full_queue_is_an_error_and_nothing_is_lost() -> None:
    rig = Rig(queue_size=4, guest_bytes=64 * 1024)
    for _ in range(20):
        rig.driver.submit_read(0, 512)
        with pytest.raises(QueueFullError):
            rig.driver.submit_read(0, 512)
        rig.driver.kick()
        assert len(rig.driver.collect()) == 1


def test_it_waits_as_its_caller_says() -> None:
    rig = Rig()
    kicks: list[str] = []

    def wait() -> None:
        kicks.append("wait")
        rig.serve()

    driver = BlockDriver(rig.queue, rig.guest, lambda: kicks.append("kick"), wait=wait)
    assert driver.write(0, bytes(512)).status == S_OK
    assert kicks == ["kick", "wait"]


def test_a_device_that_claims_to_have_written_too_much_is_at_fault() -> None:
    rig = Rig()
    rig.driver.submit(T_GET_ID, reply_bytes=20)
    rig.device_queue.take(rig.batch)
    status = rig.guest.buffer.address + rig.batch.address[2] - rig.guest.base
    store_u8(status, S_OK)
    rig.batch.written[0] = 22
    rig.device_queue.complete(rig.batch)
    rig.device_queue.publish()
    with pytest.raises(PeerProtocolError, match="22 bytes"):
        rig.driver.collect()
