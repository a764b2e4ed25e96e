"""What a backend needs from a hypervisor, as narrow interfaces.

Two implementations stand behind them: `xen.linux` (Xen's device nodes) and `xen.emulated` (a whole Xen host
in memory). Nothing above `xen/` imports either of them; `cli/` and `daemon/` choose one and pass it down.

All refusals are `HypervisorError` with the errno that the real interface gives.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple, Protocol, runtime_checkable

from xenvirtio.ids import ArgoPort, DomId, EventPort, Gfn, GrantRef, RemotePort, ServerId, Spi

VIRQ_DOM_EXC = 3
"""A domain has stopped, is dying or is gone (`DomainControl.domains` says which); for the one domain that Xen gives it
to (dom0)."""

VIRQ_ARGO = 11
"""An Argo message came, or a ring that was full has room.

Source: xen/include/public/xen.h.
"""


@runtime_checkable
class Mapping(Protocol):
    """Host memory that shows guest (or hypervisor) pages, contiguous, until `close`.

    `address` is a plain integer: whoever keeps it past `close` reads freed memory, so the owner of a mapping
    stops everything that uses the address first. `close` may be called twice.
    """

    @property
    def address(self) -> int: ...
    @property
    def length_bytes(self) -> int: ...
    def close(self) -> None: ...
    def __enter__(self) -> Mapping: ...
    def __exit__(self, *exc_info: object) -> None: ...


class EventChannels(Protocol):
    """One open /dev/xen/evtchn: event channels that arrive as a readable file descriptor.

    A port read from it stays masked until `unmask`; an event that is read but never written back silences that
    port for good. Binding an interdomain port makes it pending at once, so the first event is usually spurious.

    An implementation whose `fileno()` is Xen's own node says so with a true attribute `is_evtchn_node`; compiled code
    then does the same by plain read, write and ioctl on it.
    """

    def fileno(self) -> int:
        """A descriptor for poll: readable while a port is pending."""
        ...

    def bind_interdomain(self, domid: DomId, remote_port: RemotePort) -> EventPort: ...
    def bind_unbound(self, domid: DomId) -> EventPort: ...
    def bind_virq(self, virq: int) -> EventPort:
        """Bind an interrupt that Xen itself raises, such as `VIRQ_ARGO`; EEXIST while anybody of this domain has it."""
        ...

    def bind_static(self, port: EventPort) -> EventPort:
        """Bind this domain's end of a static channel, by the number that the static configuration gave it.

        Events sent before, also to a predecessor, are kept. A port that does not exist may be accepted: its events just
        never come. EBUSY when another process of this domain has the port, EISCONN when this object has it.
        """
        ...

    def unbind(self, port: EventPort) -> None: ...
    def notify(self, port: EventPort) -> None: ...

    def read(self) -> list[EventPort]:
        """Take the pending ports, without blocking; each is masked now."""
        ...

    def unmask(self, ports: Iterable[EventPort]) -> None:
        """Write ports back so that their next event is delivered."""
        ...

    def close(self) -> None:
        """Unbind every port of this descriptor."""
        ...


class DeviceModel(Protocol):
    """Device-model operations on one guest (privcmd DM_OP), restricted to that guest where the kernel can.

    Source: xen/include/public/hvm/dm_op.h.
    """

    @property
    def domid(self) -> DomId: ...

    def nr_vcpus(self) -> int: ...
    def create_ioreq_server(self) -> ServerId: ...
    def map_io_range(self, server: ServerId, start: int, end: int) -> None:
        """Claim guest-physical [start, end], end inclusive, for `server`."""
        ...

    def unmap_io_range(self, server: ServerId, start: int, end: int) -> None: ...
    def set_server_state(self, server: ServerId, *, enabled: bool) -> None: ...
    def destroy_ioreq_server(self, server: ServerId) -> None: ...
    def map_ioreq_page(self, server: ServerId) -> Mapping:
        """Map the synchronous page: one 32-byte slot per vCPU. May be mapped again by a later process."""
        ...

    def set_irq_level(self, irq: Spi, level: int) -> None: ...
    def open_irqfd(self, irq: Spi) -> int | None:
        """An eventfd whose every write raises `irq`, or None where the kernel has no privcmd irqfd.

        The caller owns the descriptor; closing it removes the binding.
        """
        ...

    def close(self) -> None: ...


class ForeignMemory(Protocol):
    """Mapping another domain's pages by frame number; needs privilege over that domain."""

    def map_frames(self, domid: DomId, frames: Sequence[Gfn], *, writable: bool) -> tuple[Mapping, list[int]]:
        """Map `frames` side by side; per frame 0 or a negative errno says whether it is really there.

        A frame that failed leaves a hole that must not be touched.
        """
        ...

    def close(self) -> None: ...


class Grants(Protocol):
    """One open /dev/xen/gntdev.

    An implementation over the node itself has an attribute `gntdev_descriptor`; compiled code then issues the ioctl of
    `copy` on it.
    """

    def map(self, domid: DomId, references: Sequence[GrantRef], *, writable: bool) -> Mapping:
        """Map granted pages side by side; any bad reference fails the whole call with EINVAL."""
        ...

    def copy(self, segments_address: int, count: int) -> None:
        """Run `count` copy segments lying at `segments_address`; each receives its own status.

        A segment is 24 bytes: source (virtual address u64, or reference u32, offset u16, domid u16), destination
        (the same), length u16, flags u16 (1 source is a reference, 2 destination is), status s16 (out), pad u16.
        A malformed segment fails the whole call with EINVAL and then no status is valid.

        Source: Linux include/uapi/xen/gntdev.h, struct gntdev_grant_copy_segment.
        """
        ...

    def close(self) -> None:
        """Close the node; every mapping made through it goes with it."""
        ...


class XenVersion(NamedTuple):
    """The release a Xen belongs to; a stable update does not change it."""

    major: int
    minor: int

    def __str__(self) -> str:
        return f"{self.major}.{self.minor}"


class HvmParam(IntEnum):
    """What Xen keeps for a guest that a domain builder and the guest both read.

    Source: xen/include/public/hvm/params.h.
    """

    STORE_PFN = 1
    """Where the guest finds its XenStore page; all ones while a dom0less domain has none yet, 0 for no XenStore."""
    STORE_EVTCHN = 2
    """The guest's port to XenStore, 0 for none."""


NO_PFN = (1 << 64) - 1

HANDLE_BYTES = 16


@dataclass(frozen=True, slots=True)
class DomainInfo:
    """One domain as Xen lists it."""

    domid: DomId
    is_dying: bool
    """Destroyed; something still holds its pages."""
    is_shutdown: bool
    """It has stopped by itself, and waits for a toolstack to read why and to destroy it."""
    shutdown_reason: int
    """0 poweroff, 1 reboot, 2 suspend, 3 crash, 4 watchdog; says nothing unless `is_shutdown`."""
    max_vcpus: int
    online_vcpus: int
    current_pages: int
    max_pages: int
    handle: bytes
    """16 bytes, the UUID a toolstack gave it; zeros for a domain that Xen made itself."""


class DomainControl(Protocol):
    """What a control domain does to other domains. Every method may raise HypervisorError: ESRCH for no such domain.

    Opening it on a Xen whose control interface is not known fails: EOPNOTSUPP.
    """

    def xen_version(self) -> XenVersion: ...

    def domains(self) -> list[DomainInfo]:
        """List all domains, this one included, by rising domid."""
        ...

    def destroy(self, domid: DomId) -> None:
        """End a domain. It stays in the list as dying while somebody holds its pages."""
        ...

    def hvm_param(self, domid: DomId, index: HvmParam) -> int: ...
    def set_hvm_param(self, domid: DomId, index: HvmParam, value: int) -> None: ...
    def set_handle(self, domid: DomId, handle: bytes) -> None: ...

    def raise_max_memory(self, domid: DomId, extra_pages: int) -> None:
        """Let a domain have so many pages more than its limit is now."""
        ...

    def populate_page(self, domid: DomId, gfn: Gfn) -> None:
        """Give a domain one page at `gfn`, where it must have none; ENOMEM when its limit is reached."""
        ...

    def seed_grant(self, domid: DomId, reference: GrantRef, gfn: Gfn) -> None:
        """Write into a domain's grant table (version 1, first page of it) that domain 0 may map and write `gfn`."""
        ...

    def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class ArgoAddress:
    """One end of an Argo message. Of a sender Xen vouches for the domid; the port is what the sender says."""

    domid: DomId
    port: ArgoPort


@dataclass(frozen=True, slots=True)
class ArgoRingState:
    """What Xen tells of another domain's ring. Without a ring (for us) all is false and 0."""

    exists: bool = False
    is_empty: bool = False
    has_room: bool = False
    """For as many bytes as were asked about; when not, an event follows once there is."""
    message_max_bytes: int = 0


class Argo(Protocol):
    """One open way to Xen's Argo (hypercall 39): messages that Xen copies into the receiver's ring.

    Source: xen/include/public/argo.h.
    """

    def register_ring(self, port: ArgoPort, partner: DomId, length_bytes: int) -> Mapping:
        """Make a ring in which messages from `partner` to `port` arrive; laid out as `struct xen_argo_ring`.

        `length_bytes` counts the part for messages (48 up to 16 MiB, a multiple of 16); the mapping is 64 bytes longer
        and rounded up to pages. Closing the mapping unregisters the ring first: Xen writes into its frames until then.

        Raises:
            HypervisorError: EEXIST, this domain has that ring already (an orphan of a killed process perhaps); EINVAL,
                the length; ESRCH, no such domain; EPERM, XSM; ECONNREFUSED, a domain without Argo; ENOSPC, 128 rings.
        """
        ...

    def unregister_ring(self, port: ArgoPort, partner: DomId) -> None:
        """Take a ring away that somebody else of this domain registered, as after a kill; ENOENT without one."""
        ...

    def send(self, source: ArgoPort, to: ArgoAddress, kind: int, message: bytes) -> None:
        """Copy one message into the receiver's ring; `kind` is a 32-bit number that goes with it.

        Raises:
            HypervisorError: EAGAIN, no room now, and `VIRQ_ARGO` follows once the receiver has notified;
                EMSGSIZE, longer than that ring ever takes; ECONNREFUSED, no ring for this domain; ESRCH; EPERM.
        """
        ...

    def notify(self, asked: Sequence[tuple[ArgoAddress, int]] = ()) -> list[ArgoRingState]:
        """Wake the senders that wait for room in rings of this domain; tell of others' rings and their room in bytes.

        A receiver calls it after it has taken messages out: nothing else makes Xen look. At most 256 are asked about.
        """
        ...

    def close(self) -> None:
        """Unregister every ring made through this, and close it."""
        ...


@dataclass(frozen=True, slots=True)
class GrantedPages:
    """Pages of ours, side by side, that another domain may map: one reference per page."""

    mapping: Mapping
    references: list[GrantRef]


class GrantAllocator(Protocol):
    """One open /dev/xen/gntalloc: memory of this domain that another one may use."""

    def allocate(self, domid: DomId, count: int, *, writable: bool) -> GrantedPages:
        """Grant `count` new pages to `domid`. Closing the mapping ends the access."""
        ...

    def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class StaticRegion:
    """Static shared memory, mapped. `is_cached`: as ordinary memory; `source` names the way, for people."""

    mapping: Mapping
    is_cached: bool
    source: str


GNTTAB_RESERVED_XENSTORE = GrantRef(1)
"""By this a domain's builder grants its XenStore ring to the domain of the XenStore server.

Source: xen/include/public/grant_table.h.
"""


class Hypervisor(Protocol):
    """How a backend process opens what it needs; each call opens descriptors of its own."""

    def open_event_channels(self, domid: DomId | None = None) -> EventChannels:
        """Open event channels; with `domid`, later binds are restricted to that domain where possible."""
        ...

    def open_device_model(self, domid: DomId) -> DeviceModel: ...
    def open_foreign_memory(self, domid: DomId) -> ForeignMemory: ...
    def open_grants(self) -> Grants: ...
    def open_grant_allocator(self) -> GrantAllocator: ...
    def map_static_region(self, identifier: str, address: int, length_bytes: int, *, how: str = "auto") -> StaticRegion:
        """Map static shared memory, found by its `xen,id`; `address` and length are what the configuration says.

        `how` is one of "auto", "mem" and "uio".

        Raises:
            ConfigurationError: this domain has no such region, or it lies elsewhere.
            ResourceError: the kernel offers no way to map it.
        """
        ...

    def open_domain_control(self) -> DomainControl: ...

    def open_argo(self) -> Argo:
        """Open Argo; raises HypervisorError where Xen has none, or does not let this process use it."""
        ...

    def map_own_xenstore(self) -> tuple[Mapping, RemotePort]:
        """Map the ring by which the kernel of this very domain reaches a XenStore server in it, and give its port.

        The port is one of this domain: `bind_interdomain` with its own domid.
        """
        ...
