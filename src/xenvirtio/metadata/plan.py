"""The directory of a static system: everything was said when it was built, and nothing changes."""

from __future__ import annotations

import os
import select as selecting
from collections.abc import Mapping

from xenvirtio.errors import ConfigurationError
from xenvirtio.metadata.directory import DeviceRecord, check_record, select
from xenvirtio.static.plan import Plan, PlannedDevice, Role, Transport


class PlanDirectory:
    """`Directory` over a plan: `register` checks, `find` gives what the plan says of this domain's devices."""

    def __init__(self, plan: Plan, where: str = "plan") -> None:
        """`where` names the plan in errors."""
        self._plan = plan
        self._where = where
        self._never = os.eventfd(0, os.EFD_CLOEXEC)

    def register(self, name: str, type: str, fields: Mapping[str, str]) -> None:
        check_record(name, type, fields)
        try:
            device = self._plan.device(name)
        except KeyError:
            known = ", ".join(one.name for one in self._plan.devices) or "none"
            raise ConfigurationError(self._where, f"no device {name!r}", f"allowed: {known}") from None
        where = f"{self._where}: device {name!r}"
        if device.role is not Role.FRONTEND:
            raise ConfigurationError(where, f"is domain {device.peer!r}'s to register; this domain is its backend")
        planned = self._record(device)
        if type != planned.type:
            raise ConfigurationError(f"{where}: type", f"found {type!r}", f"allowed: {planned.type}")
        for key, value in fields.items():
            if key not in planned.fields:
                raise ConfigurationError(where, f"unknown field {key!r}", "a plan has " + ", ".join(planned.fields))
            if value != planned.fields[key]:
                raise ConfigurationError(f"{where}: {key}", f"found {value!r}", f"allowed: {planned.fields[key]}")

    def withdraw(self, name: str) -> None:
        """Nothing: what is built in stays."""

    def find(self, *, type: str | None = None) -> list[DeviceRecord]:
        return select([self._record(device) for device in self._plan.devices], type)

    def _record(self, device: PlannedDevice) -> DeviceRecord:
        """Registered by its frontend, whichever end this domain is; addresses are as this domain sees them."""
        plan, peer = self._plan, self._plan.domains[device.peer]
        frontend, backend = (plan.domid, peer) if device.role is Role.FRONTEND else (peer, plan.domid)
        return DeviceRecord(
            device.name,
            device.type.name.lower(),
            frontend,
            {
                "transport": device.transport.value,
                "backend": str(backend),
                "devid": str(device.devid),
                **_meeting_place(plan, device),
                "generation": plan.generation,
            },
        )

    def fileno(self) -> int:
        """Never readable."""
        return self._never

    def wait_changed(self, timeout_s: float) -> bool:
        poll = selecting.poll()
        poll.register(self._never, selecting.POLLIN)
        poll.poll(max(0.0, timeout_s) * 1000)
        return False

    def close(self) -> None:
        if self._never >= 0:
            os.close(self._never)
            self._never = -1


def _meeting_place(plan: Plan, device: PlannedDevice) -> dict[str, str]:
    match device.transport:
        case Transport.MMIO:
            return {"base": f"{device.base:#x}", "irq": str(device.irq), "grants": str(int(device.grants))}
        case Transport.MSG_STATIC:
            region, channel = plan.region(device.region), plan.channel(device.channel)
            return {
                "region": region.id,
                "region-address": f"{region.address:#x}",
                "region-size": f"{region.size_bytes:#x}",
                "channel": channel.name,
                "port": str(channel.port),
                "peer-port": str(channel.peer_port),
            }
        case Transport.MSG_ARGO:
            return {"argo-port": f"{device.argo_port:#x}"}
