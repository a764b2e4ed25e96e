"""What is written for a planned device is what the backend reads."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from xenvirtio.control.nodes import KIND, device_nodes
from xenvirtio.daemon.entries import SPI_FIRST, SPI_LAST, WINDOW_BYTES, EntryPath, parse_entry
from xenvirtio.ids import DomId, Spi
from xenvirtio.static.plan import DOMID_MAX, PlannedDevice, Role, Transport
from xenvirtio.virtio.device import DeviceType

DOMIDS = st.integers(0, DOMID_MAX).map(DomId)


@given(
    backend=DOMIDS,
    frontend=DOMIDS,
    devid=st.integers(0, (1 << 29) - 1),
    device_type=st.sampled_from(DeviceType),
    slot=st.integers(1, (1 << 39) - 1),
    irq=st.integers(SPI_FIRST, SPI_LAST).map(Spi),
    grants=st.booleans(),
)
def test_the_backend_reads_what_the_plan_says(
    backend: DomId, frontend: DomId, devid: int, device_type: DeviceType, slot: int, irq: Spi, grants: bool
) -> None:
    device = PlannedDevice(
        "d", device_type, Role.BACKEND, "g", devid, Transport.MMIO, base=slot * WINDOW_BYTES, irq=irq, grants=grants
    )
    written = {node.path: node.value for node in device_nodes(device, backend, frontend)}
    path = EntryPath(f"/local/domain/{backend}/backend", KIND, frontend, devid)
    keys = {name.rpartition("/")[2]: value for name, value in written.items() if name.startswith(f"{path}/")}
    entry = parse_entry(path, keys)
    assert (entry.base, entry.irq, entry.device_type) == (device.base, irq, device_type)
    assert (entry.uses_grants, entry.params, entry.read_only) == (grants, None, False)
    assert written[f"{keys['frontend']}/backend"] == str(path)
    assert list(written)[-1] == f"{path}/state"
