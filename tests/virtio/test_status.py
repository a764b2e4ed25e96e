from __future__ import annotations

from xenvirtio.virtio.status import Status


def test_bits_are_those_of_the_specification() -> None:
    assert {bit.name: bit.value for bit in Status} == {
        "ACKNOWLEDGE": 1,
        "DRIVER": 2,
        "DRIVER_OK": 4,
        "FEATURES_OK": 8,
        "SUSPEND": 16,
        "DEVICE_NEEDS_RESET": 64,
        "FAILED": 128,
    }
