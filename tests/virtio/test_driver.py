from __future__ import annotations

import pytest

from tests.virtio.fakes import CONFIG, FakeDevice, Machine
from xenvirtio.errors import PeerProtocolError
from xenvirtio.virtio import features
from xenvirtio.virtio.device import DeviceType, QueueConfiguration
from xenvirtio.virtio.driver import MmioDriver
from xenvirtio.virtio.status import Status
from xenvirtio.virtio.transports.mmio_layout import Register


class StuckIo:
    """A device of which every register reads the same, for ever."""

    def __init__(self, value: int) -> None:
        self.value = value

    def mmio_read(self, address: int, size: int) -> int:
        return self.value

    def mmio_write(self, address: int, size: int, value: int) -> None:
        pass


class ShiftedIo:
    """The machine's registers somewhere in a guest's address space."""

    def __init__(self, machine: Machine, base: int) -> None:
        self.machine = machine
        self.base = base

    def mmio_read(self, address: int, size: int) -> int:
        return self.machine.mmio_read(address - self.base, size)

    def mmio_write(self, address: int, size: int, value: int) -> None:
        self.machine.mmio_write(address - self.base, size, value)


def test_a_device_is_found_where_it_is() -> None:
    machine = Machine()
    assert MmioDriver(ShiftedIo(machine, 0x2000200), 0x2000200).probe() == DeviceType.BLOCK


def test_anything_else_is_no_device() -> None:
    with pytest.raises(PeerProtocolError, match="magic 0xffffffff"):
        MmioDriver(StuckIo(0xFFFFFFFF)).probe()


def test_negotiation_takes_what_both_sides_know() -> None:
    machine = Machine(FakeDevice(features=1 << 1 | 1 << 70))
    taken = machine.driver.negotiate(1 << 70 | 1 << 71 | features.RING_RESET)
    assert taken == 1 << 70 | features.RING_RESET | features.VERSION_1
    assert machine.registers.driver_features == taken
    assert machine.driver.status == Status.ACKNOWLEDGE | Status.DRIVER | Status.FEATURES_OK


def test_negotiation_without_version_1_is_given_up() -> None:
    with pytest.raises(PeerProtocolError, match="VERSION_1"):
        MmioDriver(StuckIo(0)).negotiate(0)


def test_the_whole_life_of_a_queue() -> None:
    machine = Machine()
    machine.negotiate()
    machine.driver.setup_queue(1, 64, 0x8000000000001000, 0x8000000000002000, 0x8000000000003000)
    machine.driver.driver_ok()
    configuration = QueueConfiguration(64, 0x8000000000001000, 0x8000000000002000, 0x8000000000003000)
    assert machine.queues.running == {1: configuration}
    machine.driver.kick(1)
    machine.transport.notify_used()
    assert machine.driver.interrupt_status() == 1
    machine.driver.acknowledge(1)
    assert machine.driver.interrupt_status() == 0
    machine.driver.reset_queue(1)
    assert not machine.queues.running
    machine.driver.setup_queue(1, 32, 0x1000, 0x2000, 0x3000)
    assert machine.queues.running[1].size == 32
    machine.driver.stop_queue(1)
    assert not machine.queues.running
    machine.driver.reset()
    assert machine.driver.status == Status(0)


def test_a_queue_larger_than_the_device_takes_is_refused() -> None:
    machine = Machine()
    machine.negotiate()
    assert machine.driver.queue_size_max(2) == 0
    with pytest.raises(PeerProtocolError, match="queue 1"):
        machine.driver.setup_queue(1, 128, 0, 0, 0)


def test_a_queue_in_use_is_not_set_up_again() -> None:
    machine = Machine()
    machine.negotiate()
    machine.setup_queue(0)
    with pytest.raises(PeerProtocolError, match="in use"):
        machine.setup_queue(0)


@pytest.mark.parametrize("length", [1, 2, 4, 6, 8, 24])
def test_configuration_is_read_in_the_widths_of_its_fields(length: int) -> None:
    machine = Machine()
    assert machine.driver.read_config(0, length) == CONFIG[:length]
    assert machine.transport.rejected_accesses == 0


@pytest.mark.parametrize("length", [1, 2, 4, 6, 8])
def test_configuration_is_written_in_the_widths_of_its_fields(length: int) -> None:
    machine = Machine()
    machine.negotiate()
    machine.driver.write_config(8, b"\xaa" * length)
    assert machine.device.config == CONFIG[:8] + b"\xaa" * length + CONFIG[8 + length :]


def test_a_configuration_that_changes_meanwhile_is_read_again() -> None:
    class ChangingIo(ShiftedIo):
        changes = 3

        def mmio_read(self, address: int, size: int) -> int:
            value = super().mmio_read(address, size)
            if address == 0x100 and self.changes:
                self.changes -= 1
                self.machine.device.change_config(bytes([self.changes]) * 8)
            return value

    assert MmioDriver(ChangingIo(Machine(), 0)).read_config(0, 8) == bytes(8)


def test_a_driver_does_not_wait_for_ever() -> None:
    with pytest.raises(PeerProtocolError, match="STATUS"):
        MmioDriver(StuckIo(1)).reset()

    class RestlessIo(StuckIo):
        def mmio_read(self, address: int, size: int) -> int:
            self.value += address == Register.CONFIG_GENERATION
            return self.value % 256

    with pytest.raises(PeerProtocolError, match="configuration"):
        MmioDriver(RestlessIo(1)).read_config(0, 4)


def test_features_refused_by_the_device_are_an_error() -> None:
    class ForgetfulIo(ShiftedIo):
        """Loses the driver's features on the way."""

        def mmio_write(self, address: int, size: int, value: int) -> None:
            if address != Register.DRIVER_FEATURES:
                super().mmio_write(address, size, value)

    machine = Machine()
    with pytest.raises(PeerProtocolError, match="refuses the features VERSION_1"):
        MmioDriver(ForgetfulIo(machine, 0)).negotiate(features.VERSION_1)
    assert machine.driver.status & Status.FAILED
