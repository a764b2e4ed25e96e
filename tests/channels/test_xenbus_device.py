from __future__ import annotations

import os
from pathlib import Path

import pytest

from xenvirtio.channels.xenbus_device import KernelStore, XenbusDevice, kernel_store, read_kernel_store

HEAD = "           CPU0       CPU1\n"


@pytest.mark.parametrize(
    ("interrupts", "expected"),
    [
        (HEAD + " 14:   120   0   xen-dyn   1 Edge   xenbus\n", KernelStore.READY),
        (HEAD + " 14:     0   0   xen-dyn   1 Edge   xenstore_late_init\n", KernelStore.LATE),
        (HEAD + " 12:   0   0   GICv3   27 Level   arch_timer\n\n", KernelStore.ABSENT),
        (HEAD + " 12:   0   0   GICv3   27 Level   not-xenbus\n", KernelStore.ABSENT),
        ("", KernelStore.ABSENT),
    ],
)
def test_readiness_is_read_off_the_interrupts(interrupts: str, expected: KernelStore) -> None:
    assert kernel_store(interrupts) is expected


def test_no_file_is_no_store(tmp_path: Path) -> None:
    assert read_kernel_store(tmp_path / "none") is KernelStore.ABSENT


def test_bytes_go_through_the_descriptor(tmp_path: Path) -> None:
    pipe = tmp_path / "device"
    os.mkfifo(pipe)
    device = XenbusDevice(pipe)  # a FIFO opened for both directions answers with what was written
    assert device.receive() == b""
    assert device.send(b"message") == 7
    assert device.receive() == b"message"
    device.close()
    device.close()
    with pytest.raises(OSError, match="No such file"):
        XenbusDevice(tmp_path / "none")
