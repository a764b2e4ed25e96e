"""A whole Xen host in memory, without XenStore and toolstack: domains, grants, event channels, IOREQ servers.

It refuses what Xen and the Linux drivers were seen to refuse, with the same codes, and keeps their traps: masked
ports, the spurious event at binding, servers that outlive their process, zombie domains. The `EmulatedHost` lives in
one process with its guests; a backend is a client of it in the same process or in another, which may be killed.

Where it is softer than the real thing: a backend process is trusted (it can map any guest's memory), a wrong local
address in a grant copy is a segmentation fault and not EFAULT, and an irqfd goes away with its device model only.
"""

from xenvirtio.xen.emulated.client import EmulatedHypervisor, connect_emulated
from xenvirtio.xen.emulated.domain import Domain
from xenvirtio.xen.emulated.host import DomainEvent, EmulatedHost
from xenvirtio.xen.emulated.vcpu import DataAbort, DomainDestroyed, GuestCrashed, Vcpu, VcpuStopped

__all__ = [
    "DataAbort",
    "Domain",
    "DomainDestroyed",
    "DomainEvent",
    "EmulatedHost",
    "EmulatedHypervisor",
    "GuestCrashed",
    "Vcpu",
    "VcpuStopped",
    "connect_emulated",
]
