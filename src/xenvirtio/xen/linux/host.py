"""The real hypervisor, as a backend process in dom0 or in a driver domain reaches it."""

from __future__ import annotations

from xenvirtio.ids import DomId, RemotePort
from xenvirtio.xen.capabilities import StaticRegion
from xenvirtio.xen.linux import own_xenstore
from xenvirtio.xen.linux.argo import LinuxArgo
from xenvirtio.xen.linux.device_model import LinuxDeviceModel
from xenvirtio.xen.linux.domain_control import LinuxDomainControl
from xenvirtio.xen.linux.evtchn import LinuxEventChannels
from xenvirtio.xen.linux.foreign_memory import LinuxForeignMemory
from xenvirtio.xen.linux.gntalloc import LinuxGrantAllocator
from xenvirtio.xen.linux.gntdev import LinuxGrants
from xenvirtio.xen.linux.privcmd import Privcmd
from xenvirtio.xen.linux.static_region import map_static_region
from xenvirtio.xen.mapping import OwnedMapping


class LinuxHypervisor:
    """`Hypervisor` over the device nodes of `device_directory`."""

    def __init__(self, device_directory: str = "/dev/xen") -> None:
        self._directory = device_directory

    def open_event_channels(self, domid: DomId | None = None) -> LinuxEventChannels:
        return LinuxEventChannels(f"{self._directory}/evtchn", domid)

    def open_device_model(self, domid: DomId) -> LinuxDeviceModel:
        return LinuxDeviceModel(Privcmd(f"{self._directory}/privcmd", domid))

    def open_foreign_memory(self, domid: DomId) -> LinuxForeignMemory:
        return LinuxForeignMemory(Privcmd(f"{self._directory}/privcmd", domid))

    def open_grants(self) -> LinuxGrants:
        return LinuxGrants(f"{self._directory}/gntdev")

    def open_grant_allocator(self) -> LinuxGrantAllocator:
        return LinuxGrantAllocator(f"{self._directory}/gntalloc")

    def map_static_region(self, identifier: str, address: int, length_bytes: int, *, how: str = "auto") -> StaticRegion:
        return map_static_region(identifier, address, length_bytes, how=how)

    def open_domain_control(self) -> LinuxDomainControl:
        return LinuxDomainControl(self._directory)

    def map_own_xenstore(self) -> tuple[OwnedMapping, RemotePort]:
        return own_xenstore.map_ring(), own_xenstore.read_port()

    def open_argo(self) -> LinuxArgo:
        return LinuxArgo(self._directory)
