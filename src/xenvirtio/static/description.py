"""The description of a statically partitioned system, as it was written: `system.toml`.

What may be left out is None (or empty) here; `system.resolve` assigns it. Every part knows its place in the file,
`where`, for example `domain[0] "frontend"`: what is found wrong names the places it concerns. docs/static.md has every
key.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

from xenvirtio.static.host import Host
from xenvirtio.static.plan import Transport
from xenvirtio.static.span import Span
from xenvirtio.virtio.device import DeviceType
from xenvirtio.xen.capabilities import XenVersion

DOM0 = "dom0"
"""Name of the first domain, in every place that takes a domain's name."""


class Os(Enum):
    LINUX = "linux"
    ZEPHYR = "zephyr"


class Enhanced(Enum):
    """Xen's paravirtual interfaces in a domain (`xen,enhanced`)."""

    ENABLED = "enabled"
    """Everything, XenStore once dom0 brings it up."""
    NO_XENSTORE = "no-xenstore"
    LEGACY = "legacy"
    """As `enabled`, with XenStore's page left for the toolstack to make, as 4.17 to 4.20 do."""
    DISABLED = "disabled"
    """Nothing: no event channels, no grants. Shared memory works all the same."""

    @property
    def has_xenstore(self) -> bool:
        return self in (Enhanced.ENABLED, Enhanced.LEGACY)

    @property
    def has_channels(self) -> bool:
        return self is not Enhanced.DISABLED


class View(Enum):
    """How programs of a Linux domain map shared memory."""

    DEVMEM = "devmem"
    """/dev/mem: cached; the kernel must be without STRICT_DEVMEM."""
    UIO = "uio"
    """/dev/uioN: uncached; works with any kernel that has UIO, and wants a node in the domain's tree."""


CAPABILITIES = {"control": 1, "hardware": 2, "xenstore": 4}
"""Bits of Xen's `capabilities` property (xen/include/public/bootfdt.h)."""


@dataclass(frozen=True, slots=True)
class Domain:
    """One domain. dom0 is one too: `is_dom0`, direct-mapped, with XenStore."""

    where: str
    name: str
    os: Os
    memory_bytes: int
    vcpus: int
    kernel: str
    """File names here are relative to the description's folder."""
    ramdisk: str | None = None
    arguments: str = ""
    domid: int | None = None
    enhanced: Enhanced = Enhanced.ENABLED
    vpl011: bool = True
    direct_map: bool = False
    static_memory: tuple[Span, ...] = ()
    gate: bool = False
    view: View = View.DEVMEM
    capabilities: tuple[str, ...] = ()
    trap_unmapped_accesses: bool = True
    spis: int | None = None
    grant_frames: int | None = None
    files: Mapping[str, str] = field(default_factory=dict)
    """Path in the domain -> file to place there, through its ramdisk."""

    @property
    def is_dom0(self) -> bool:
        return self.name == DOM0


@dataclass(frozen=True, slots=True)
class RegionDescription:
    """Static shared memory. `guests` gives its address in each domain, None where it is to be assigned."""

    where: str
    id: str
    size_bytes: int
    guests: Mapping[str, int | None]
    host: int | None = None
    owner: str | None = None


@dataclass(frozen=True, slots=True)
class ChannelDescription:
    """A static event channel. `ends` gives each domain's port, None where it is to be assigned."""

    where: str
    name: str
    ends: Mapping[str, int | None]


Setting = str | int | bool


@dataclass(frozen=True, slots=True)
class DeviceDescription:
    """One virtio device. `settings` are the further keys of its entry in backends.toml, `resource` among them."""

    where: str
    name: str
    type: DeviceType
    frontend: str
    backend: str
    transport: Transport
    devid: int | None = None
    base: int | None = None
    irq: int | None = None
    grants: bool | None = None
    region: str | None = None
    channel: str | None = None
    argo_port: int | None = None
    resource: Mapping[str, Setting] = field(default_factory=dict)
    settings: Mapping[str, Setting] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ImageBuilder:
    """What ImageBuilder's configuration says beyond the domains. Source: its README."""

    memory_start: int | None = None
    memory_end: int | None = None
    load_command: str = "tftpb"
    boot_command: str = "booti"
    device_tree: str | None = None
    """The host's device tree blob; the description's `host_tree` unless said."""
    uboot_source: str = "boot.source"
    uboot_script: str = "boot.scr"


@dataclass(frozen=True, slots=True)
class Yocto:
    deploy_dir: str = "${DEPLOY_DIR_IMAGE}"
    """Where the build puts kernels and ramdisks."""


@dataclass(frozen=True, slots=True)
class Description:
    """A whole system. `source` is the name of its file."""

    source: str
    where: str
    name: str
    xen: XenVersion
    host: Host
    domains: tuple[Domain, ...]
    """dom0 first where there is one, the others in the order of their tables."""
    regions: tuple[RegionDescription, ...] = ()
    channels: tuple[ChannelDescription, ...] = ()
    devices: tuple[DeviceDescription, ...] = ()
    host_tree: str | None = None
    xen_image: str = "xen"
    xen_arguments: str = ""
    static_heap: tuple[Span, ...] = ()
    modules_from: int | None = None
    imagebuilder: ImageBuilder = field(default_factory=ImageBuilder)
    yocto: Yocto = field(default_factory=Yocto)

    @property
    def dom0(self) -> Domain | None:
        return self.domains[0] if self.domains and self.domains[0].is_dom0 else None

    def domain(self, name: str) -> Domain:
        """Raises KeyError when there is none of that name."""
        for domain in self.domains:
            if domain.name == name:
                return domain
        raise KeyError(name)
