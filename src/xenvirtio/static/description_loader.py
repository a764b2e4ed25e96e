"""`system.toml` into a `Description`: types, names and references are checked here, everything else by `check`."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from enum import Enum
from pathlib import Path
from typing import Any, TypeVar

from xenvirtio.errors import ConfigurationError
from xenvirtio.static.description import (
    CAPABILITIES,
    DOM0,
    ChannelDescription,
    Description,
    DeviceDescription,
    Domain,
    Enhanced,
    ImageBuilder,
    Os,
    RegionDescription,
    Setting,
    View,
    Yocto,
)
from xenvirtio.static.host import PLATFORM_MEMORY_BYTES, PLATFORMS, Host, HostDevice, known_host
from xenvirtio.static.plan import ARGO_PORT_MAX, DOMID_MAX, SPI_FIRST, SPI_LAST, Transport
from xenvirtio.static.span import Span
from xenvirtio.static.xen_version import OLDEST, parse_xen_version
from xenvirtio.toml_table import Check, Table, between, load_toml, one_of, parse_address, parse_toml
from xenvirtio.virtio.device import DeviceType
from xenvirtio.xen.capabilities import XenVersion

TABLES_MAX = {"domain": 64, "region": 128, "channel": 512, "device": 256}
"""Beyond what Xen takes (32 modules, 32 regions), so that checking ends in bounded time whatever the file holds."""
SPANS_MAX = 256
"""NR_MEM_BANKS (xen/include/xen/bootfdt.h)."""
VCPUS_MAX = 128
"""GUEST_MAX_VCPUS (xen/include/public/arch-arm.h)."""
TEXT_MAX = 4096
NUMBER_MAX = (1 << 31) - 1

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,31}", re.ASCII)
_IDENTIFIER = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", re.ASCII)
_ABSENT_TREE = "give platform (a machine that is known), host_tree or a table [host]"

E = TypeVar("E", bound=Enum)


ReadHost = Callable[[str], Host]
"""From the name of a host tree, relative to the description, to the host. Raises ConfigurationError."""


def load_description(path: Path, read_host: ReadHost | None = None) -> Description:
    """Read a description. `read_host` is asked when nothing but a host tree says what the host is.

    Raises:
        ConfigurationError: unreadable, or a key, value or reference that is not allowed.
    """
    return _description(load_toml(path), str(path), read_host)


def parse_description(text: str, source: str = "system.toml", read_host: ReadHost | None = None) -> Description:
    """Parse a description; as `load_description`."""
    return _description(parse_toml(text, source), source, read_host)


def _description(top: Table, source: str, read_host: ReadHost | None) -> Description:
    system = top.table("system")
    if system is None:
        raise ConfigurationError(top.where, "table 'system' is missing", "it gives name, xen and platform")
    domains = _domains(top)
    _refuse_twice(top.where, [(domain.where, domain.name) for domain in domains])
    names = [domain.name for domain in domains]
    regions = [_region(table, names) for table in _tables(top, "region")]
    channels = [_channel(table, names) for table in _tables(top, "channel")]
    devices = [_device(table, names) for table in _tables(top, "device")]
    _refuse_twice(top.where, [(region.where, region.id) for region in regions])
    _refuse_twice(top.where, [(channel.where, channel.name) for channel in channels])
    _refuse_twice(top.where, [(device.where, device.name) for device in devices])
    image_builder, yocto = _image_builder(top.table("imagebuilder")), _yocto(top.table("yocto"))
    host_table = top.table("host")
    description = Description(
        source=source,
        where="system",
        name=system.need("name", str, check=_name),
        xen=_xen_version(system),
        host=_host(system, host_table, read_host),
        domains=tuple(domains),
        regions=tuple(regions),
        channels=tuple(channels),
        devices=tuple(devices),
        host_tree=system.value("host_tree"),
        xen_image=system.get("xen_image", str, "xen", check=_file),
        xen_arguments=system.get("xen_arguments", str, "", check=_line),
        static_heap=_spans(system, "static_heap"),
        modules_from=system.optional_address("modules_from"),
        imagebuilder=image_builder,
        yocto=yocto,
    )
    system.finish()
    top.finish()
    return description


def _tables(top: Table, key: str) -> list[Table]:
    tables, most = top.tables(key), TABLES_MAX.get(key, SPANS_MAX)
    if len(tables) > most:
        raise ConfigurationError(f"{top.where}: {key}", f"{len(tables)} tables", f"allowed: at most {most}")
    return tables


def _refuse_twice(source: str, entries: Sequence[tuple[str, str]]) -> None:
    first: dict[str, str] = {}
    for where, name in entries:
        if name in first:
            raise ConfigurationError(f"{source}: {where}", f"is named as {first[name]}", "give each its own name")
        first[name] = where


def _place(table: Table, name: str) -> str:
    """The place of a table in findings, and from here on in its own errors: `region[1] "ring1"`."""
    table.where = f'{table.where} "{name}"'
    return table.where.rpartition(": ")[2]


def _xen_version(system: Table) -> XenVersion:
    text = system.need("xen", str)
    version = parse_xen_version(text)
    if version is None or version < OLDEST:
        system.refuse("xen", f"a release from {OLDEST} on, for example \"4.20\"")
    return version


def _host(system: Table, table: Table | None, read_host: ReadHost | None) -> Host:
    platform = system.optional("platform", str, check=one_of(PLATFORMS))
    memory = system.size("host_memory", PLATFORM_MEMORY_BYTES)
    tree = system.optional("host_tree", str, check=_file)
    if table is None:
        if platform is not None:
            return known_host(platform, memory)
        if tree is not None and read_host is not None:
            return read_host(tree)
        raise ConfigurationError(system.where, "the host is not described", _ABSENT_TREE)
    if platform is not None:
        raise ConfigurationError(table.where, "there is a platform already", "give one of them")
    host = Host(
        where="host",
        memory=_spans(table, "memory"),
        gic_version=table.need("gic_version", int, check=between(2, 3)),
        gic=tuple(HostDevice(f"GIC {n}", span) for n, span in enumerate(_spans(table, "gic"))),
        uart=next((HostDevice("UART", span) for span in _spans(table, "uart")), None),
        uart_irq=table.optional("uart_irq", int, check=between(SPI_FIRST, SPI_LAST)),
        early=tuple(HostDevice("what the boot loader placed", span) for span in _spans(table, "loaded")),
        console=table.get("console", str, "", check=_line),
    )
    table.finish()
    if not host.memory:
        raise ConfigurationError(table.where, "key 'memory' is missing", "for example [{ address = 0x40000000, ...}]")
    return host


def _domains(top: Table) -> list[Domain]:
    dom0 = top.table("dom0")
    tables = _tables(top, "domain")
    domains = [] if dom0 is None else [_dom0(dom0)]
    domains += [_domain(table, has_dom0=dom0 is not None) for table in tables]
    if not domains:
        raise ConfigurationError(top.where, "no domain is described", "give [dom0] or [[domain]]")
    return domains


def _dom0(table: Table) -> Domain:
    domain = Domain(
        where="dom0",
        name=DOM0,
        os=Os.LINUX,
        memory_bytes=table.size("memory"),
        vcpus=table.get("vcpus", int, 1, check=between(1, VCPUS_MAX)),
        kernel=table.need("kernel", str, check=_file),
        ramdisk=table.optional("ramdisk", str, check=_file),
        arguments=table.get("arguments", str, "", check=_line),
        domid=0,
        vpl011=False,
        direct_map=True,
        files=_files(table),
    )
    table.finish()
    return domain


def _domain(table: Table, *, has_dom0: bool) -> Domain:
    name = table.need("name", str, check=_domain_name)
    where = _place(table, name)
    os = _enum(table, "os", Os, Os.LINUX)
    # Zephyr cannot wait for a XenStore that comes late
    usual = Enhanced.ENABLED if has_dom0 and os is Os.LINUX else Enhanced.NO_XENSTORE
    domain = Domain(
        where=where,
        name=name,
        os=os,
        memory_bytes=table.size("memory"),
        vcpus=table.get("vcpus", int, 1, check=between(1, VCPUS_MAX)),
        kernel=table.need("kernel", str, check=_file),
        ramdisk=table.optional("ramdisk", str, check=_file),
        arguments=table.get("arguments", str, "", check=_line),
        domid=table.optional("domid", int, check=between(1, DOMID_MAX)),
        enhanced=_enum(table, "enhanced", Enhanced, usual),
        vpl011=table.get("vpl011", bool, True),
        direct_map=table.get("direct_map", bool, False),
        static_memory=_spans(table, "static_memory"),
        gate=table.get("gate", bool, False),
        view=_enum(table, "view", View, View.DEVMEM),
        capabilities=_capabilities(table),
        trap_unmapped_accesses=table.get("trap_unmapped_accesses", bool, True),
        spis=table.optional("spis", int, check=between(0, 988)),
        grant_frames=table.optional("grant_frames", int, check=between(1, NUMBER_MAX)),
        files=_files(table),
    )
    table.finish()
    return domain


def _region(table: Table, names: Sequence[str]) -> RegionDescription:
    identifier = table.need("id", str, check=_identifier)
    where = _place(table, identifier)
    guests = _by_domain(table, "guests", names, parse_address, "an address")
    region = RegionDescription(
        where=where,
        id=identifier,
        size_bytes=table.size("size"),
        guests=guests,
        host=table.optional_address("host"),
        owner=table.optional("owner", str, check=one_of(guests)),
    )
    table.finish()
    return region


def _channel(table: Table, names: Sequence[str]) -> ChannelDescription:
    name = table.need("name", str, check=_identifier)
    where = _place(table, name)

    def port(value: object) -> int | None:
        return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= NUMBER_MAX else None

    channel = ChannelDescription(where, name, _by_domain(table, "ends", names, port, "a port"))
    if len(channel.ends) != 2:
        table.refuse("ends", "exactly two domains")
    table.finish()
    return channel


def _by_domain(
    table: Table, key: str, names: Sequence[str], parse: Any, what: str
) -> Mapping[str, int | None]:
    """`{ a = 1, b = 2 }`, or `["a", "b"]` to have the numbers assigned."""
    value = table.value(key)
    allowed = f"{{ DOMAIN = {what}, ... }}, or a list of domains to have them assigned"
    if value is None:
        raise ConfigurationError(table.where, f"key {key!r} is missing", f"it takes {allowed}")
    found: dict[str, int | None]
    if isinstance(value, dict):
        found = {name: parse(number) for name, number in value.items()}
        if None in found.values():
            table.refuse(key, allowed)
    else:
        listed = table.texts(key)
        found = dict.fromkeys(listed)
        if len(found) != len(listed):
            table.refuse(key, "each domain once")
    unknown = [name for name in found if name not in names]
    if unknown or not found:
        problem = f"found {unknown[0]!r}" if unknown else "names no domain"
        raise ConfigurationError(f"{table.where}: {key}", problem, "allowed: " + ", ".join(names))
    return found


_MMIO_KEYS, _STATIC_KEYS, _ARGO_KEYS = ("base", "irq", "grants"), ("region", "channel"), ("argo_port",)
_KEYS = {Transport.MMIO: _MMIO_KEYS, Transport.MSG_STATIC: _STATIC_KEYS, Transport.MSG_ARGO: _ARGO_KEYS}


def _device(table: Table, names: Sequence[str]) -> DeviceDescription:
    name = table.need("name", str, check=_identifier)
    where = _place(table, name)
    transport = _enum(table, "transport", Transport, Transport.MMIO)
    for other, keys in _KEYS.items():
        for key in keys:
            if other is not transport and table.value(key) is not None:
                raise ConfigurationError(
                    f"{table.where}: {key}",
                    f'has no meaning with transport = "{transport.value}"',
                    f'it belongs to "{other.value}"',
                )
    type_name = table.need("type", str, check=one_of(kind.name.lower() for kind in DeviceType))
    device = DeviceDescription(
        where=where,
        name=name,
        type=DeviceType[type_name.upper()],
        frontend=table.need("frontend", str, check=one_of(names)),
        backend=table.need("backend", str, check=one_of(names)),
        transport=transport,
        devid=table.optional("devid", int, check=between(0, (1 << 29) - 1)),
        base=table.optional_address("base"),
        irq=table.optional("irq", int, check=between(0, NUMBER_MAX)),
        grants=table.optional("grants", bool),
        region=table.optional("region", str, check=_identifier),
        channel=table.optional("channel", str, check=_identifier),
        argo_port=table.optional("argo_port", int, check=between(0, ARGO_PORT_MAX)),
        resource=_resource(table),
        settings=_settings(table),
    )
    table.finish()
    if device.frontend == device.backend:
        table.refuse("backend", "another domain than the frontend")
    return device


def _resource(table: Table) -> Mapping[str, Setting]:
    resource = table.table("resource")
    if resource is None:
        return {}
    found: dict[str, Setting] = {}
    for key in resource.keys_present():
        value = resource.value(key)
        if not isinstance(value, str | int) or (isinstance(value, str) and _line(value)):
            resource.refuse(key, "text on one line, a whole number, true or false")
        found[key] = value
    return found


def _settings(table: Table) -> Mapping[str, Setting]:
    """The other keys of a device's entry in backends.toml, passed on as they are."""
    found: dict[str, Setting | None] = {
        "serial": table.optional("serial", str, check=_line),
        "queues": table.optional("queues", int, check=between(1, NUMBER_MAX)),
        "queue_size": table.optional("queue_size", int, check=between(1, NUMBER_MAX)),
    }
    return {key: value for key, value in found.items() if value is not None}


def _image_builder(table: Table | None) -> ImageBuilder:
    if table is None:
        return ImageBuilder()
    usual = ImageBuilder()
    found = ImageBuilder(
        memory_start=table.optional_address("memory_start"),
        memory_end=table.optional_address("memory_end"),
        load_command=table.get("load_command", str, usual.load_command, check=_line),
        boot_command=table.get("boot_command", str, usual.boot_command, check=_line),
        device_tree=table.optional("device_tree", str, check=_file),
        uboot_source=table.get("uboot_source", str, usual.uboot_source, check=_file),
        uboot_script=table.get("uboot_script", str, usual.uboot_script, check=_file),
    )
    table.finish()
    return found


def _yocto(table: Table | None) -> Yocto:
    if table is None:
        return Yocto()
    found = Yocto(deploy_dir=table.get("deploy_dir", str, Yocto().deploy_dir, check=_line))
    table.finish()
    return found


def _enum(table: Table, key: str, kind: type[E], default: E) -> E:
    return kind(table.get(key, str, default.value, check=one_of(member.value for member in kind)))


def _spans(table: Table, key: str) -> tuple[Span, ...]:
    """`[{ address = ..., size = ... }, ...]`."""
    tables = _tables(table, key)
    spans = []
    for item in tables:
        spans.append(Span(item.address("address"), item.size("size")))
        item.finish()
    return tuple(spans)


def _capabilities(table: Table) -> tuple[str, ...]:
    found = table.texts("capabilities")
    if not CAPABILITIES.keys() >= set(found) or len(set(found)) != len(found):
        table.refuse("capabilities", "a list of " + ", ".join(CAPABILITIES))
    return tuple(found)


def _files(table: Table) -> Mapping[str, str]:
    files = table.table("files")
    if files is None:
        return {}
    for target in files.keys_present():
        parts = target.split("/")
        # the ramdisk is unpacked by the domain's kernel: a path that climbs out of it would surprise
        if _line(target) or not target.startswith("/") or ".." in parts or not parts[-1]:
            raise ConfigurationError(files.where, f"found {target!r}", "allowed: absolute paths of files in the domain")
    return {target: files.need(target, str, check=_file) for target in files.keys_present()}


def _name(value: str) -> str | None:
    return None if _NAME.fullmatch(value) else "a letter, then up to 31 letters, digits, - and _"


def _domain_name(value: str) -> str | None:
    if value == DOM0:
        return "another name: dom0 is described by the table [dom0]"
    return _name(value)


def _identifier(value: str) -> str | None:
    return None if _IDENTIFIER.fullmatch(value) else "letters, digits, '.', '_' and '-', at most 64"


def _line(value: str) -> str | None:
    fits = len(value) <= TEXT_MAX and value.isprintable()
    return None if fits else f"one line of at most {TEXT_MAX} printable characters"


_file: Check = lambda value: _line(value) if value else "the name of a file"  # noqa: E731
