"""`xenvirtio serve --plan`: a backend where there is no XenStore at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.control.processes import Program, planned_guest, until
from tests.control.world import PLAN, plan
from tests.sandbox.rig import GuestIo, Image
from xenvirtio.daemon.plan_store import PlanStore
from xenvirtio.errors import ConfigurationError
from xenvirtio.ids import DomId
from xenvirtio.static.plan import parse_plan
from xenvirtio.xen.emulated import EmulatedHost


def test_the_nodes_of_a_plan_and_the_death_of_a_guest() -> None:
    with EmulatedHost() as host:
        host.create_domain()
        with PlanStore(plan(), host.open_hypervisor(), look_s=0.05) as store:
            client = store.client
            backend = "/local/domain/0/backend/virtio/1/0"
            assert client.read("domid") == "0"
            assert client.read("/local/domain/1/name") == "alpha"
            assert (client.read(f"{backend}/base"), client.read(f"{backend}/state")) == ("0x2000000", "1")
            host.destroy_domain(DomId(1))
            until(lambda: not client.exists(backend))
            host.create_domain(domid=DomId(1))
            until(lambda: client.read_optional(f"{backend}/state") == "1")


def test_a_plan_without_devices_to_serve_is_refused() -> None:
    text = PLAN.replace('role = "backend"', 'role = "frontend"')
    with EmulatedHost() as host, pytest.raises(ConfigurationError, match=r"plan of 'dom0': has no \[\[device\]\]"):
        PlanStore(parse_plan(text), host.open_hypervisor())


@pytest.mark.parametrize("grants", [False, True], ids=["foreign", "grants"])
def test_serve_with_a_plan_serves_and_is_replaced(tmp_path: Path, grants: bool) -> None:
    image = Image(tmp_path / "disk.img")
    (tmp_path / "plan.toml").write_text(PLAN)
    (tmp_path / "backends.toml").write_text(
        f'[daemon]\nstate_dir = "{tmp_path}/state"\n[[device]]\nguest = "alpha"\ntype = "block"\n'
        f'resource = {{ file = "{image.path}" }}\n'
    )
    arguments = ("serve", "--emulated", tmp_path, "--plan", tmp_path / "plan.toml", tmp_path / "backends.toml")
    programs = []
    with EmulatedHost() as host:
        host.listen(tmp_path / "hypervisor")
        guest = planned_guest("alpha", host.create_domain(), grants=grants)
        try:
            programs.append(Program(*arguments, log=tmp_path / "log"))
            until(lambda: "ready" in programs[0].messages())
            io = GuestIo(guest, image)
            io.progress()
            programs[0].kill()
            programs.append(Program(*arguments, log=tmp_path / "log"))
            io.progress()
            io.stop()
            image.assert_right()
            host.destroy_domain(guest.domid)
            until(lambda: host.domain(DomId(1)) is None)
            assert programs[1].terminate() == 0
        finally:
            for program in programs:
                program.close()
