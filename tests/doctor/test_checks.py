"""Each situation that is known, and what is said about it."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from tests.doctor.world import (
    EACCES,
    ECONNREFUSED,
    ENOENT,
    ENOTTY,
    EOPNOTSUPP,
    EPERM,
    ETIMEDOUT,
    LATE,
    NO_IOREQ_XEN,
    SILO_XEN,
    WHOLE_KERNEL,
    bare,
    dom0,
    domu,
)
from xenvirtio.doctor.answers import Answers, Step
from xenvirtio.doctor.checks import host
from xenvirtio.doctor.finding import Status
from xenvirtio.doctor.machine import DomainKind
from xenvirtio.doctor.report import is_fine


def test_a_good_dom0_has_nothing_to_complain_about(tmp_path: Path) -> None:
    findings = dom0(tmp_path).findings()
    complaints = {name for name, finding in findings.items() if finding.status is not Status.OK}
    assert complaints <= {"engine"}  # interpreted test runs
    assert findings["xen"].found == "Xen 4.20.4-pre"
    assert is_fine(list(findings.values()))


def test_without_xen_only_xen_is_missing_and_nothing_of_xen_is_probed(tmp_path: Path) -> None:
    world = bare(tmp_path)
    findings = world.findings(guest="vm")
    assert [name for name, finding in findings.items() if finding.status is Status.MISSING] == ["xen"]
    assert findings["ioreq"].status is findings["xenstore"].status is Status.SKIPPED
    assert [name for name, _ in world.asked] == ["kernel"]


def test_a_kernel_that_ignores_the_xen_below_it_is_named(tmp_path: Path) -> None:
    world = bare(tmp_path)
    world.write("/proc/device-tree/hypervisor/compatible", "xen,xen-4.20\0xen,xen\0")
    assert "CONFIG_XEN" in world.findings()["xen"].remedy


def test_dom0_is_known_by_xens_features_where_xenfs_is_not_mounted(tmp_path: Path) -> None:
    world = dom0(tmp_path)
    world.remove("/proc/xen/capabilities")
    assert world.machine().domain_kind is DomainKind.DOMU
    world.write("/sys/hypervisor/properties/features", "00002840\n")
    assert world.machine().domain_kind is DomainKind.DOM0


def test_a_driver_domain_names_its_guest(tmp_path: Path) -> None:
    assert "domU 3, device model of domain 7" in domu(tmp_path, target="7").findings()["domain"].found


def test_a_domu_without_target_hears_how_to_get_one(tmp_path: Path) -> None:
    finding = domu(tmp_path).findings()["domain"]
    assert finding.status is Status.WARNING
    assert "xc_domain_set_target" in finding.remedy


# -- device nodes


@pytest.mark.parametrize("name", ["privcmd", "evtchn", "gntdev"])
def test_an_absent_node_of_a_module_asks_for_modprobe(tmp_path: Path, name: str) -> None:
    world = dom0(tmp_path)
    world.remove(f"/dev/xen/{name}")
    world.write("/boot/config-6.12.0", WHOLE_KERNEL.replace("=y", "=m"))
    finding = world.findings()[name]
    assert finding.status is Status.MISSING
    assert finding.remedy == f"modprobe xen-{name}"


def test_an_absent_node_of_a_kernel_without_it_asks_for_another_kernel(tmp_path: Path) -> None:
    world = dom0(tmp_path)
    world.remove("/dev/xen/gntdev")
    world.write("/boot/config-6.12.0", WHOLE_KERNEL.replace("CONFIG_XEN_GNTDEV=y", "# CONFIG_XEN_GNTDEV is not set"))
    assert "CONFIG_XEN_GNTDEV=y or =m" in world.findings()["gntdev"].remedy


def test_no_nodes_at_all_in_a_kernel_that_has_them_is_devtmpfs_missing(tmp_path: Path) -> None:
    world = dom0(tmp_path)
    for node in (tmp_path / "dev/xen").iterdir():
        node.unlink()
    (tmp_path / "dev/xen").rmdir()
    assert "devtmpfs" in world.findings()["privcmd"].remedy


@pytest.mark.parametrize("name", ["gntalloc", "xenbus_backend"])
def test_nodes_that_serve_does_not_use_are_not_missed(tmp_path: Path, name: str) -> None:
    world = dom0(tmp_path)
    world.remove(f"/dev/xen/{name}")
    assert world.findings()[name].status is Status.SKIPPED


def test_xenbus_is_needed_where_there_is_no_socket(tmp_path: Path) -> None:
    world = dom0(tmp_path)
    world.remove("/dev/xen/xenbus")
    assert world.findings()["xenbus"].status is Status.SKIPPED
    world.remove("/run/xenstored/socket")
    assert world.findings()["xenbus"].status is Status.MISSING


def test_a_node_that_only_root_may_open_asks_for_root(tmp_path: Path) -> None:
    world = dom0(tmp_path)
    world.answer("nodes", Step("evtchn", EACCES))
    world.answer("privcmd", Step("privcmd", EACCES))
    findings = world.findings()
    for name in ("evtchn", "privcmd"):
        assert findings[name].status is Status.MISSING
        assert "EACCES" in findings[name].found
        assert "root" in findings[name].remedy


def test_a_node_whose_open_hangs_is_missing_and_privcmd_is_left_alone(tmp_path: Path) -> None:
    world = dom0(tmp_path)
    world.probes["nodes"] = Answers.of(hung=True)
    findings = world.findings()
    assert "hangs" in findings["evtchn"].found
    assert "not tried" in findings["privcmd"].found
    assert "privcmd" not in [name for name, _ in world.asked]


@pytest.mark.parametrize(("interrupts", "word"), [(LATE, "not there yet"), ("", "not there")])
def test_a_domu_without_xenstore_gets_no_node_opened(tmp_path: Path, interrupts: str, word: str) -> None:
    world = domu(tmp_path)
    world.write("/proc/interrupts", interrupts)
    world.probes["xenstore"] = Answers.of(Step("connect", ETIMEDOUT))
    findings = world.findings(guest="7")
    assert {name for name, _ in world.asked} == {"xenstore", "kernel"}
    assert findings["privcmd"].status is Status.MISSING
    assert word in findings["privcmd"].found
    assert findings["ioreq"].status is Status.SKIPPED


# -- kernel


@pytest.mark.parametrize("error", [EOPNOTSUPP, ENOTTY])
def test_a_kernel_without_irqfd_is_a_warning(tmp_path: Path, error: int) -> None:
    world = dom0(tmp_path)
    world.answer("privcmd", Step("irqfd", error))
    finding = world.findings()["irqfd"]
    assert finding.status is Status.WARNING
    assert "CONFIG_XEN_PRIVCMD_EVENTFD" in finding.remedy


def test_gntdev_without_copy_is_missing(tmp_path: Path) -> None:
    world = dom0(tmp_path)
    world.answer("nodes", Step("grant_copy", ENOTTY))
    assert world.findings()["grant copy"].status is Status.MISSING


def test_kernel_options_come_from_proc_first(tmp_path: Path) -> None:
    world = dom0(tmp_path)
    (tmp_path / "proc/config.gz").write_bytes(gzip.compress(b"CONFIG_XEN=y\nCONFIG_XENFS=y\n"))
    finding = world.findings()["kernel options"]
    assert finding.status is Status.WARNING
    assert "CONFIG_XEN_PRIVCMD_EVENTFD" in finding.found
    assert "CONFIG_XENFS" not in finding.remedy.split()
    assert "grant_usage=0" in finding.found


def test_unreadable_kernel_options_are_no_fault(tmp_path: Path) -> None:
    world = dom0(tmp_path)
    world.remove("/boot/config-6.12.0")
    assert world.findings()["kernel options"].status is Status.SKIPPED


def test_eventfd_is_needed_and_io_uring_is_not(tmp_path: Path) -> None:
    world = dom0(tmp_path)
    world.answer("kernel", Step("eventfd", EPERM), Step("io_uring", EPERM))
    world.write("/proc/sys/kernel/io_uring_disabled", "2\n")
    findings = world.findings()
    assert findings["eventfd"].status is Status.MISSING
    assert findings["io_uring"].status is Status.WARNING
    assert "kernel.io_uring_disabled=0" in findings["io_uring"].remedy


# -- XenStore


def test_no_xenstored_in_dom0(tmp_path: Path) -> None:
    world = dom0(tmp_path)
    world.probes["xenstore"] = Answers.of(Step("connect", ETIMEDOUT))
    finding = world.findings()["xenstore"]
    assert finding.status is Status.MISSING
    assert "xenstored" in finding.remedy


@pytest.mark.parametrize(("error", "word"), [(ECONNREFUSED, "died"), (EACCES, "root")])
def test_a_socket_that_does_not_take_us(tmp_path: Path, error: int, word: str) -> None:
    world = dom0(tmp_path)
    world.probes["xenstore"] = Answers.of(Step("socket", error), Step("connect", ETIMEDOUT))
    finding = world.findings()["xenstore"]
    assert finding.status is Status.MISSING
    assert word in finding.remedy


def test_a_xenstored_that_is_stuck(tmp_path: Path) -> None:
    world = dom0(tmp_path)
    world.probes["xenstore"] = Answers.of(Step("socket"), Step("connect", ETIMEDOUT))
    assert "nobody answers" in world.findings()["xenstore"].found


def test_a_dom0_that_was_not_introduced(tmp_path: Path) -> None:
    world = dom0(tmp_path)
    world.answer("xenstore", Step("domid", ENOENT))
    finding = world.findings()["xenstore"]
    assert finding.status is Status.WARNING
    assert "xen-init-dom0" in finding.remedy


def test_a_late_xenstore_warns_of_writing(tmp_path: Path) -> None:
    world = domu(tmp_path)
    world.write("/proc/interrupts", LATE)
    world.probes["xenstore"] = Answers.of(Step("connect", ETIMEDOUT))
    finding = world.findings()["xenstore"]
    assert finding.status is Status.MISSING
    assert "init-dom0less" in finding.remedy
    assert "Do not write" in finding.meaning


# -- Xen's own configuration


def test_a_xen_without_ioreq_servers_is_known_without_a_guest(tmp_path: Path) -> None:
    world = dom0(tmp_path)
    world.answer("privcmd", Step("xen_config", value=NO_IOREQ_XEN))
    finding = world.findings()["ioreq"]
    assert finding.status is Status.MISSING
    assert "CONFIG_EXPERT=y and CONFIG_IOREQ_SERVER=y" in finding.remedy


def test_a_xen_that_keeps_its_configuration_to_itself_says_how_to_try(tmp_path: Path) -> None:
    world = dom0(tmp_path)
    world.answer("privcmd", Step("xen_config", ENOENT))
    findings = world.findings()
    assert findings["ioreq"].status is Status.SKIPPED
    assert "--guest" in findings["ioreq"].remedy
    assert findings["xsm"].status is Status.SKIPPED


@pytest.mark.parametrize(
    ("line", "config", "found"),
    [
        ("console=dtuart", SILO_XEN, "SILO (default of this Xen): fine in dom0"),
        ("xsm=dummy console=dtuart", SILO_XEN, "dummy (Xen's command line)"),
        ("xsm=flask", SILO_XEN, "FLASK (Xen's command line)"),
        ("", SILO_XEN.replace("SILO_DEFAULT", "FLASK_DEFAULT"), "FLASK (default of this Xen)"),
        ("", "CONFIG_IOREQ_SERVER=y\n", "dummy (Xen built without XSM)"),
    ],
)
def test_the_xsm_mode(tmp_path: Path, line: str, config: str, found: str) -> None:
    world = dom0(tmp_path)
    world.answer("privcmd", Step("command_line", value=line), Step("xen_config", value=config))
    assert world.findings()["xsm"].found == found


def test_a_domu_cannot_read_the_xsm_mode_and_says_so(tmp_path: Path) -> None:
    finding = domu(tmp_path, target="7").findings()["xsm"]
    assert finding.status is Status.SKIPPED
    assert "only dom0" in finding.found


# -- this program


def test_an_old_python_is_missing(tmp_path: Path) -> None:
    assert dom0(tmp_path).findings(python_version=(3, 10, 4))["python"].status is Status.MISSING


def test_architectures(tmp_path: Path) -> None:
    world = dom0(tmp_path)
    assert world.findings(architecture="riscv64")["architecture"].status is Status.MISSING
    assert world.findings(architecture="x86_64")["architecture"].status is Status.WARNING
    assert world.findings(page_bytes=65536)["architecture"].status is Status.MISSING


def test_an_interpreted_engine_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "describe_engine", lambda: "interpreted engine (correct but slow)")
    finding = dom0(tmp_path).findings()["engine"]
    assert finding.status is Status.WARNING
    assert "gcc" in finding.remedy


def test_an_engine_that_does_not_load_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> str:
        raise ImportError("undefined symbol: PyWhatever")

    monkeypatch.setattr(host, "describe_engine", fail)
    assert "PyWhatever" in dom0(tmp_path).findings()["engine"].found


def test_a_state_directory_that_is_read_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "_is_writable", lambda _: False)
    assert dom0(tmp_path).findings()["state directory"].status is Status.MISSING


def test_a_state_directory_that_is_a_file(tmp_path: Path) -> None:
    world = dom0(tmp_path)
    world.write("/run/xenvirtio", "")
    assert "not a directory" in world.findings()["state directory"].found


def test_a_full_state_directory(tmp_path: Path) -> None:
    finding = dom0(tmp_path).findings(free_bytes=lambda path: 4096)["state directory"]
    assert finding.status is Status.MISSING
    assert "4 KiB free" in finding.found


def test_a_state_directory_on_a_disk_is_a_warning(tmp_path: Path) -> None:
    finding = dom0(tmp_path).findings(state_dir=Path("/var/lib/xenvirtio"))["state directory"]
    assert finding.status is Status.WARNING
    assert "tmpfs" in finding.found
