"""/chosen and the partial trees, compiled by dtc and read back: all of the system, and nothing else."""

from __future__ import annotations

import shutil
from dataclasses import replace

import pytest

from tests.static.emit.example import DESCRIPTION, modules, system
from xenvirtio.resources.device_tree import TreeReader, compile_tree
from xenvirtio.static.description import CAPABILITIES, Domain
from xenvirtio.static.description_loader import parse_description
from xenvirtio.static.emit.chosen import HostTree, bootargs, chosen_node, xen_arguments
from xenvirtio.static.emit.passthrough import passthrough_tree
from xenvirtio.static.resolve import resolve
from xenvirtio.static.system import System
from xenvirtio.static.tree import Node, source_of

pytestmark = pytest.mark.skipif(not shutil.which("dtc"), reason="needs dtc (device-tree-compiler)")
pytest.importorskip("libfdt", reason="needs pylibfdt")


def read(of: System, host: HostTree | None = None) -> TreeReader:
    chosen = chosen_node(of, modules(of), host or HostTree())
    return TreeReader(compile_tree(source_of(Node("/", {}, [chosen])), "chosen"))


def halves(*numbers: int) -> tuple[int, ...]:
    return tuple(half for number in numbers for half in (number >> 32, number & 0xFFFFFFFF))


def passthrough(name: str) -> TreeReader | None:
    tree = passthrough_tree(system(), system().description.domain(name))
    return None if tree is None else TreeReader(compile_tree(source_of(tree), name))


def test_domains_stand_in_the_order_of_their_domids() -> None:
    tree, of = read(system()), system()
    domains = [node for node in tree.children("/chosen") if "cpus" in tree.properties(f"/chosen/{node}")]
    assert domains == [name for name in of.domids if name != "dom0"]
    for name in domains:
        domain = of.description.domain(name)
        assert tree.texts(f"/chosen/{name}", "compatible") == ("xen,domain",)
        assert tree.cells(f"/chosen/{name}", "cpus") == (domain.vcpus,)
        assert tree.cells(f"/chosen/{name}", "memory") == (0, domain.memory_bytes // 1024)
        assert tree.texts(f"/chosen/{name}", "xen,enhanced") == (domain.enhanced.value,)
        assert ("vpl011" in tree.properties(f"/chosen/{name}")) == domain.vpl011


def test_every_other_property_of_a_domain() -> None:
    tree = read(system())
    assert tree.cells("/chosen/front", "nr_spis") == (64,)
    assert tree.cells("/chosen/front", "max_grant_frames") == (16,)
    assert tree.cells("/chosen/front", "trap-unmapped-accesses") == (0,)
    assert tree.cells("/chosen/back", "xen,static-mem") == halves(0xD0000000, 128 << 20)
    assert "direct-map" in tree.properties("/chosen/back")
    assert not {"nr_spis", "direct-map", "xen,static-mem", "trap-unmapped-accesses", "capabilities"} & set(
        tree.properties("/chosen/sensor")
    )


@pytest.mark.parametrize(
    ("names", "number"), [(("control",), 1), (("hardware", "xenstore"), 6), (tuple(CAPABILITIES), 7)]
)
def test_capabilities_are_bits(names: tuple[str, ...], number: int) -> None:
    assert read(changed(capabilities=names)).cells("/chosen/front", "capabilities") == (number,)


def changed(**changes: object) -> System:
    """The example with the domain `front` changed."""
    description = parse_description(DESCRIPTION)
    domains = [
        replace(domain, **changes) if domain.name == "front" else domain  # type: ignore[arg-type]
        for domain in description.domains
    ]
    return resolve(replace(description, domains=tuple(domains)))


def test_both_ends_of_a_channel_point_at_each_other() -> None:
    tree, of = read(system()), system()
    for channel in of.channels:
        nodes = []
        for end in channel.ends:
            folder = "/chosen" if end.domain == "dom0" else f"/chosen/{end.domain}"
            nodes.append(f"{folder}/event-channel-{end.port}")
        for end, node, peer in zip(channel.ends, nodes, nodes[::-1], strict=True):
            assert tree.texts(node, "compatible") == ("xen,evtchn-v1",)
            assert tree.cells(node, "xen,evtchn") == (end.port, *(tree.cells(peer, "phandle") or ()))


def test_a_region_has_a_node_in_every_domain_that_shares_it() -> None:
    tree, of = read(system()), system()
    for region in of.regions:
        for domain, address in region.guests.items():
            folder = "/chosen" if domain == "dom0" else f"/chosen/{domain}"
            node = f"{folder}/shared-memory-{address:x}"
            host = [] if region.host is None else [region.host]
            assert tree.texts(node, "compatible") == ("xen,domain-shared-memory-v1",)
            assert tree.texts(node, "xen,shm-id") == (region.id,)
            assert tree.cells(node, "xen,shared-mem") == halves(*host, address, region.size_bytes)
            role = None if region.owner is None else ("owner" if region.owner == domain else "borrower",)
            assert tree.texts(node, "role") == role


def test_command_lines_come_out_as_they_were_written() -> None:
    tree, of = read(system()), system()
    arguments = [
        tree.texts(f"/chosen/{node}", "bootargs")
        for node in tree.children("/chosen")
        if "bootargs" in tree.properties(f"/chosen/{node}")
    ]
    assert arguments == [("root=/dev/vda say=\"it's $HOME `id` \\ ;#\"",)]
    assert tree.texts("/chosen", "xen,xen-bootargs") == ("dom0_mem=524288K dom0_max_vcpus=2 console=dtuart quiet",)
    assert bootargs(of, of.description.domain("front")) == "console=ttyAMA0 uio_pdrv_genirq.of_id=generic-uio"
    assert bootargs(of, of.description.domain("back")) == ""


def test_what_the_description_says_of_dom0s_size_stays() -> None:
    text = DESCRIPTION.replace("console=dtuart quiet", "dom0_mem=1G,max:1G sync_console")
    assert xen_arguments(system(text)) == "dom0_max_vcpus=2 dom0_mem=1G,max:1G sync_console"


def test_the_static_heap_is_in_the_cells_of_the_root() -> None:
    assert read(system()).cells("/chosen", "xen,static-heap") == halves(0xE0000000, 64 << 20)
    assert read(system(), HostTree(1, 1)).cells("/chosen", "xen,static-heap") == (0xE0000000, 64 << 20)
    assert read(system(), HostTree(2, 1)).cells("/chosen", "xen,static-heap") == (0, 0xE0000000, 64 << 20)


def test_a_partial_tree_has_the_virtio_devices_with_their_interrupts_and_backends() -> None:
    tree, of = passthrough("front"), system()
    assert tree is not None
    assert tree.children("/") == ["gic", "passthrough"]
    assert "interrupt-controller" in tree.properties("/gic")
    gic = tree.cells("/gic", "phandle")
    assert gic is not None
    assert gic[0] < 65000, "Xen's own begin there"
    for device in of.devices[:2]:
        node = f"/passthrough/virtio@{device.base:x}"
        assert tree.texts(node, "compatible") == ("virtio,mmio",)
        assert tree.cells(node, "reg") == halves(device.base, 0x200)
        assert tree.cells(node, "interrupts") == (0, device.irq - 32, 1)
        assert tree.cells(node, "interrupt-parent") == gic
        iommu = tree.cells("/passthrough/xen-grant-dma", "phandle") or ()
        assert tree.cells(node, "iommus") == ((*iommu, of.domids["dom0"]) if device.grants else None)
    uio = [node for node in tree.children("/passthrough") if node.startswith("shared-memory@")]
    assert [tree.cells(f"/passthrough/{node}", "reg") for node in uio] == [
        halves(region.guests["front"], region.size_bytes) for region in of.regions_of("front")
    ]
    assert len(tree.children("/passthrough")) == 3 + len(uio), "a device that meets in shared memory has no node"


def test_a_domain_without_devices_has_no_partial_tree() -> None:
    assert passthrough("back") is None
    assert passthrough("sensor") is None
    assert passthrough("dom0") is None


@pytest.mark.parametrize(("kind", "number"), [("i2c", 34), ("gpio", 41)])
def test_a_bus_behind_a_device_has_its_node(kind: str, number: int) -> None:
    of = system(DESCRIPTION.replace('type = "net"', f'type = "{kind}"'))
    root = passthrough_tree(of, of.description.domain("front"))
    assert root is not None
    tree = TreeReader(compile_tree(source_of(root), "front"))
    assert tree.texts(f"/passthrough/virtio@2000200/{kind}", "compatible") == (f"virtio,device{number:x}",)


def test_example_covers_every_key_of_a_domain() -> None:
    """So that a key that is added to the description is not forgotten here."""
    known = {"where", "name", "os", "memory_bytes", "vcpus", "kernel", "ramdisk", "arguments", "domid", "enhanced"}
    known |= {"vpl011", "direct_map", "static_memory", "gate", "view", "capabilities", "trap_unmapped_accesses"}
    known |= {"spis", "grant_frames", "files"}
    assert set(Domain.__dataclass_fields__) == known
