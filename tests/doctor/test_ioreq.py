"""Why a guest cannot be served: the errno table of the reference notes, section 4, and what Linux adds."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.doctor.world import EINVAL, ENOENT, ENOSPC, ENOSYS, EOPNOTSUPP, EPERM, ESRCH, dom0, domu
from xenvirtio.doctor.answers import Answers, Step
from xenvirtio.doctor.finding import Status


def test_a_server_that_can_be_made_is_fine(tmp_path: Path) -> None:
    world = dom0(tmp_path)
    finding = world.findings(guest="7")["ioreq"]
    assert finding.status is Status.OK
    assert "domain 7 (2 vCPUs)" in finding.found
    assert ("ioreq", (str(tmp_path / "dev/xen"), "7")) in world.asked


def test_a_guest_is_found_by_its_name(tmp_path: Path) -> None:
    world = dom0(tmp_path)
    assert world.findings(guest="linux-1")["ioreq"].status is Status.OK
    assert ("xenstore", ("linux-1",)) in world.asked


def test_a_name_that_nobody_has(tmp_path: Path) -> None:
    world = dom0(tmp_path)
    world.answer("xenstore", Step("guest", ENOENT))
    finding = world.findings(guest="nobody")["ioreq"]
    assert finding.status is Status.MISSING
    assert "'nobody'" in finding.found


def test_a_domu_may_not_look_names_up(tmp_path: Path) -> None:
    world = domu(tmp_path, target="7")
    world.answer("xenstore", Step("guest", 13))
    assert world.findings(guest="linux-1")["ioreq"].remedy == "give its domid"


@pytest.mark.parametrize("error", [EOPNOTSUPP, ENOSYS])
@pytest.mark.parametrize("first_error", [0, ENOSYS])
def test_a_xen_without_ioreq_servers(tmp_path: Path, error: int, first_error: int) -> None:
    world = dom0(tmp_path)
    world.probes["ioreq"] = Answers.of(
        Step("hypercall"), Step("restrict"), Step("nr_vcpus", first_error), Step("create", error)
    )
    finding = world.findings(guest="7")["ioreq"]
    assert finding.status is Status.MISSING
    assert "CONFIG_EXPERT" in finding.remedy


def _domu_refusal(
    tmp_path: Path, *, target: str | None, hypercall: int, restrict: int, nr_vcpus: int, create: int
) -> tuple[str, str]:
    world = domu(tmp_path, target=target)
    world.probes["ioreq"] = Answers.of(
        *(Step("privcmd"), Step("hypercall", hypercall), Step("restrict", restrict)),
        *(Step("nr_vcpus", nr_vcpus), Step("create", create)),
    )
    finding = world.findings(guest="7")["ioreq"]
    assert finding.status is Status.MISSING
    return f"{finding.found} {finding.meaning}", finding.remedy


def test_silo(tmp_path: Path) -> None:
    said, remedy = _domu_refusal(tmp_path, target="7", hypercall=EPERM, restrict=0, nr_vcpus=0, create=EPERM)
    assert "SILO" in said
    assert "xsm=dummy" in remedy


def test_set_target_was_not_called(tmp_path: Path) -> None:
    said, remedy = _domu_refusal(tmp_path, target="7", hypercall=EPERM, restrict=0, nr_vcpus=EPERM, create=EPERM)
    assert "xc_domain_set_target was not called" in said
    assert "takes effect at once" in remedy


def test_no_target_key(tmp_path: Path) -> None:
    said, remedy = _domu_refusal(tmp_path, target=None, hypercall=EPERM, restrict=EINVAL, nr_vcpus=EPERM, create=EPERM)
    assert "XSA-482" in said
    assert "xen_privcmd.unrestricted=1" in remedy
    assert "/local/domain/B/target" in remedy


def test_no_target_key_is_known_without_a_guest(tmp_path: Path) -> None:
    finding = domu(tmp_path).findings()["ioreq"]
    assert finding.status is Status.MISSING
    assert "every guest" in finding.found


def test_a_target_key_that_came_after_boot(tmp_path: Path) -> None:
    said, remedy = _domu_refusal(tmp_path, target="7", hypercall=EPERM, restrict=EINVAL, nr_vcpus=EPERM, create=EPERM)
    assert "at boot" in said
    assert "reboot" in remedy


def test_the_target_is_another_guest(tmp_path: Path) -> None:
    said, _ = _domu_refusal(tmp_path, target="5", hypercall=EPERM, restrict=EINVAL, nr_vcpus=EPERM, create=EPERM)
    assert "is domain 5" in said


def test_an_unrestricted_kernel_is_only_half(tmp_path: Path) -> None:
    said, remedy = _domu_refusal(tmp_path, target=None, hypercall=0, restrict=0, nr_vcpus=EPERM, create=EPERM)
    assert "Linux's half" in said
    assert "xc_domain_set_target" in remedy


def test_a_useless_unrestricted_points_at_lockdown(tmp_path: Path) -> None:
    world = domu(tmp_path)
    world.write("/proc/cmdline", "root=/dev/xvda xen_privcmd.unrestricted=1\n")
    assert "lockdown" in world.findings()["ioreq"].remedy


@pytest.mark.parametrize(
    ("nr_vcpus", "create", "word"),
    [
        (ESRCH, ESRCH, "no domain 7"),
        (EINVAL, EINVAL, "HVM or PVH"),
        (0, ENOSPC, "8 IOREQ servers"),
        (EPERM, EPERM, "FLASK"),
    ],
)
def test_refusals_in_dom0(tmp_path: Path, nr_vcpus: int, create: int, word: str) -> None:
    world = dom0(tmp_path)
    world.probes["ioreq"] = Answers.of(Step("restrict"), Step("nr_vcpus", nr_vcpus), Step("create", create))
    finding = world.findings(guest="7")["ioreq"]
    assert finding.status is Status.MISSING
    assert word in f"{finding.found} {finding.meaning}"


def test_ones_own_domain_is_no_guest(tmp_path: Path) -> None:
    world = dom0(tmp_path)
    world.probes["ioreq"] = Answers.of(Step("nr_vcpus", EPERM), Step("create", EPERM))
    assert "this domain" in world.findings(guest="0")["ioreq"].found


def test_a_page_that_cannot_be_mapped(tmp_path: Path) -> None:
    world = dom0(tmp_path)
    world.answer("ioreq", Step("map", 25))
    finding = world.findings(guest="7")["ioreq"]
    assert finding.status is Status.MISSING
    assert "4.18" in finding.remedy


def test_a_server_left_behind_is_told(tmp_path: Path) -> None:
    world = dom0(tmp_path)
    world.answer("ioreq", Step("destroy", EPERM))
    finding = world.findings(guest="7")["ioreq"]
    assert finding.status is Status.WARNING
    assert "server 0" in finding.found


def test_a_probe_that_hangs(tmp_path: Path) -> None:
    world = dom0(tmp_path)
    world.probes["ioreq"] = Answers.of(hung=True)
    assert "hung" in world.findings(guest="7")["ioreq"].found
