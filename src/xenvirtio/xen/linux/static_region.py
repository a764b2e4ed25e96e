"""Static shared memory of this domain: found in its device tree, mapped through /dev/mem or UIO.

Two ways, and both ends of a region must go the same one: a cached and an uncached view do not agree on real hardware.

- **/dev/mem** maps it as ordinary, cached memory: the region is part of the domain's memory as Linux sees it. It is the
  first choice, being faster and free of alignment rules. A kernel with CONFIG_STRICT_DEVMEM answers EPERM.
- **UIO** (`generic-uio` node over the same range, `uio_pdrv_genirq`) also works with STRICT_DEVMEM. It maps device
  memory: uncached, aligned accesses only.

Nothing is mapped that Xen did not announce: at an address out of a file /dev/mem would show this kernel's own memory.

Source: Xen docs/misc/arm/device-tree/booting.txt and the guest's `/reserved-memory/xen-shmem@...`; seen on Xen 4.20.
"""

from __future__ import annotations

import errno
import os
import struct
from dataclasses import dataclass
from pathlib import Path

from xenvirtio.errors import ConfigurationError, ResourceError
from xenvirtio.xen import libc
from xenvirtio.xen.capabilities import StaticRegion
from xenvirtio.xen.mapping import OwnedMapping

RESERVED_MEMORY = Path("/proc/device-tree/reserved-memory")
UIO_CLASS = Path("/sys/class/uio")
DEV = Path("/dev")

WAYS = ("auto", "mem", "uio")


@dataclass(frozen=True, slots=True)
class AnnouncedRegion:
    """A region as Xen announces it in this domain's device tree."""

    id: str
    address: int
    length_bytes: int


def announced_regions(tree: Path | None = None) -> list[AnnouncedRegion]:
    """The shared regions of this domain, by address."""
    found = []
    for node in sorted((tree or RESERVED_MEMORY).glob("xen-shmem@*")):
        try:
            name = (node / "xen,id").read_bytes().rstrip(b"\0").decode(errors="replace")
            address, length = struct.unpack(">QQ", (node / "reg").read_bytes()[:16])
        except (OSError, struct.error):
            continue
        found.append(AnnouncedRegion(name, address, length))
    return sorted(found, key=lambda region: region.address)


def find_region(identifier: str, address: int, length_bytes: int, tree: Path | None = None) -> AnnouncedRegion:
    """Find a region by its id, and check that it lies where the configuration says.

    Raises:
        ConfigurationError: it is not there, or elsewhere.
    """
    known = announced_regions(tree)
    where = f"region {identifier!r}"
    for region in known:
        if region.id == identifier:
            if (region.address, region.length_bytes) != (address, length_bytes):
                raise ConfigurationError(
                    where,
                    f"found {length_bytes:#x} bytes at {address:#x} in the plan",
                    f"Xen has {region.length_bytes:#x} at {region.address:#x}: plan and boot configuration differ",
                )
            return region
    names = ", ".join(region.id for region in known) or "none at all"
    remedy = f"this domain's device tree has {names}"
    raise ConfigurationError(where, "Xen gave this domain no shared memory of that id", remedy)


def map_static_region(identifier: str, address: int, length_bytes: int, *, how: str = "auto") -> StaticRegion:
    """Map a region; see `Hypervisor.map_static_region`."""
    if how not in WAYS:
        raise ConfigurationError("how to map the region", f"found {how!r}", "allowed: " + ", ".join(WAYS))
    region = find_region(identifier, address, length_bytes)
    problems = []
    for way, attempt in (("mem", _map_memory), ("uio", _map_uio)):
        if how in ("auto", way):
            try:
                return attempt(region)
            except ResourceError as error:
                problems.append(str(error))
    raise ResourceError(f"region {identifier!r} cannot be mapped: " + "; ".join(problems))


def _map_memory(region: AnnouncedRegion) -> StaticRegion:
    path = DEV / "mem"
    try:
        return _map(path, region, region.address, is_cached=True)
    except OSError as error:
        hints = {
            errno.EPERM: "this kernel has CONFIG_STRICT_DEVMEM: use UIO, or a kernel without it",
            errno.ENOENT: "this kernel lacks CONFIG_DEVMEM",
            errno.EACCES: "needs root",
        }
        raise ResourceError(f"{path}: {error.strerror}: {hints.get(error.errno or 0, 'try UIO')}") from error


def _map_uio(region: AnnouncedRegion) -> StaticRegion:
    path = _find_uio(region)
    try:
        return _map(path, region, 0, is_cached=False)
    except OSError as error:
        raise ResourceError(f"{path}: {error.strerror}") from error


def _find_uio(region: AnnouncedRegion) -> Path:
    """Find the UIO device of a region by the address of its first map: numbers are given in order of probing."""
    for device in sorted(UIO_CLASS.glob("uio*")):
        try:
            address = int((device / "maps/map0/addr").read_text(), 16)
            length = int((device / "maps/map0/size").read_text(), 16)
        except (OSError, ValueError):
            continue
        if address == region.address and length >= region.length_bytes:
            return DEV / device.name
    raise ResourceError(
        f"no UIO device at {region.address:#x}: it takes a `generic-uio` node over the region, CONFIG_UIO_PDRV_GENIRQ "
        "and uio_pdrv_genirq.of_id=generic-uio on the kernel's command line"
    )


def _map(path: Path, region: AnnouncedRegion, offset: int, *, is_cached: bool) -> StaticRegion:
    descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)  # without O_SYNC: cached
    try:
        prot, length = libc.protection(writable=True), region.length_bytes
        address = libc.mmap(length, prot, libc.MAP_SHARED, descriptor, offset)
    finally:
        os.close(descriptor)
    mapping = OwnedMapping(address, length, lambda: libc.munmap(address, length))
    return StaticRegion(mapping, is_cached, str(path))
