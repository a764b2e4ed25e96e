from __future__ import annotations

import struct
import threading

import pytest

from xenvirtio.errors import UsageError
from xenvirtio.memory.buffer import HostBuffer
from xenvirtio.virtio.registers import PAGE_BYTES, QUEUE_DESC, QUEUE_DEVICE, QUEUE_DRIVER, QUEUE_SIZE, DeviceRegisters


@pytest.fixture
def page() -> HostBuffer:
    return HostBuffer(PAGE_BYTES)


def fill_in(registers: DeviceRegisters) -> None:
    registers.raise_events(3)
    registers.set_status(0x4F)
    registers.device_features_sel = 5
    registers.driver_features_sel = 6
    for index in range(4):
        registers.store_driver_features(index, 0x100 + index)
    registers.queue_sel = 7
    registers.shm_sel = 8
    registers.config_generation = 9
    queue = registers.queues[63]
    queue.store_word(QUEUE_SIZE, 256)
    queue.set_ready(True)
    for offset, value in ((QUEUE_DESC, 1), (QUEUE_DRIVER, 2), (QUEUE_DEVICE, 3)):
        queue.store_word(offset, 0xFFFFFFF0 + value)
        queue.store_word(offset + 4, 0x80000000)


def test_the_layout_never_changes(page: HostBuffer) -> None:
    """A successor, possibly of the next release, reads what a killed process wrote."""
    fill_in(DeviceRegisters(page.address))
    assert struct.unpack_from("<11I", page.view) == (3, 0x4F, 5, 6, 0x100, 0x101, 0x102, 0x103, 7, 8, 9)
    assert struct.unpack_from("<IIQQQ", page.view, 256 + 63 * 32) == (
        256,
        1,
        0x80000000FFFFFFF1,
        0x80000000FFFFFFF2,
        0x80000000FFFFFFF3,
    )
    assert not any(page.view[44 : 256 + 63 * 32])
    assert not any(page.view[256 + 64 * 32 :])


def test_a_second_view_of_the_page_reads_the_same(page: HostBuffer) -> None:
    fill_in(DeviceRegisters(page.address))
    seen = DeviceRegisters(page.address)
    assert (seen.interrupt_status, seen.status) == (3, 0x4F)
    assert (seen.device_features_sel, seen.driver_features_sel, seen.queue_sel, seen.shm_sel) == (5, 6, 7, 8)
    assert seen.driver_features == 0x100 | 0x101 << 32 | 0x102 << 64 | 0x103 << 96
    assert seen.config_generation == 9
    queue = seen.queues[63]
    assert (queue.size, queue.ready) == (256, True)
    assert (queue.desc, queue.driver, queue.device) == (0x80000000FFFFFFF1, 0x80000000FFFFFFF2, 0x80000000FFFFFFF3)


def test_clear_keeps_nothing_but_the_generation(page: HostBuffer) -> None:
    registers = DeviceRegisters(page.address)
    fill_in(registers)
    registers.clear()
    assert registers.config_generation == 9
    registers.config_generation = 0
    assert not any(page.view)


def test_clearing_one_queue_leaves_the_others(page: HostBuffer) -> None:
    registers = DeviceRegisters(page.address)
    for queue in registers.queues:
        queue.store_word(QUEUE_SIZE, 16)
    registers.queues[5].clear()
    assert [queue.size for queue in registers.queues] == [0 if index == 5 else 16 for index in range(64)]


def test_events_are_set_and_acknowledged_bit_by_bit(page: HostBuffer) -> None:
    registers = DeviceRegisters(page.address)
    assert registers.raise_events(1) == 0
    assert registers.raise_events(2) == 1
    assert registers.acknowledge(0xFFFFFFFD) == 3
    assert registers.interrupt_status == 2


def test_no_event_is_lost_between_threads(page: HostBuffer) -> None:
    registers = DeviceRegisters(page.address)
    lost = []

    def toggle(bit: int) -> None:
        for _ in range(2000):
            registers.raise_events(bit)
            if not registers.acknowledge(bit) & bit:
                lost.append(bit)

    threads = [threading.Thread(target=toggle, args=(1 << number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not lost
    assert registers.interrupt_status == 0


def test_registers_lie_at_the_start_of_a_page(page: HostBuffer) -> None:
    with pytest.raises(UsageError, match="start of a page"):
        DeviceRegisters(page.address + 8)
