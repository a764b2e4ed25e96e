"""Two domains' processes on the emulated host: block requests without traps, and either end killed with -9."""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.daemon.msg_rig import DISK_BYTES, SERVER, USER, TwoDomains, cpu_seconds


@pytest.fixture
def two(tmp_path: Path) -> Iterator[TwoDomains]:
    system = TwoDomains(tmp_path)
    yield system
    system.close()


def digest_in(report: str) -> str:
    found = re.search(r"sha256 ([0-9a-f]{64})", report)
    assert found, report
    return found.group(1)


def image_digest(two: TwoDomains) -> str:
    return hashlib.sha256(two.image.read_bytes()).hexdigest()


def test_what_is_written_through_messages_is_in_the_other_domains_file(two: TwoDomains) -> None:
    two.serve()
    report, _ = two.run(USER, "verify", "disk0", "--size", str(DISK_BYTES))
    assert f"{DISK_BYTES} bytes verified" in report.decode()
    assert digest_in(report.decode()) == image_digest(two)
    data = bytes(range(256)) * 8
    _, said = two.run(USER, "write", "disk0", "--offset", "1M", data=data)
    assert digest_in(said) == hashlib.sha256(data).hexdigest()
    assert two.run(USER, "read", "disk0", "--offset", "1M", "--size", "2048")[0] == data
    assert two.image.read_bytes()[1 << 20 :][:2048] == data


def test_info_shows_the_disk_and_its_carrier(two: TwoDomains) -> None:
    two.serve()
    text = two.run(USER, "info", "disk0")[0].decode()
    assert f"{DISK_BYTES} bytes" in text
    assert "event channel 10" in text
    assert "VERSION_1" in text
    assert "median" in text


def test_the_driver_may_come_first_and_waits_without_work(two: TwoDomains) -> None:
    user = two.start(USER, "read", "disk0", "--size", "512")
    time.sleep(1.5)
    used = cpu_seconds(user)
    time.sleep(1.5)
    assert user.poll() is None
    assert cpu_seconds(user) - used < 0.3
    server = two.serve()
    assert two.finish(user) == "\0" * 512
    two.wait_for_log(server, "has started anew")
    used = cpu_seconds(server)
    time.sleep(1.5)
    assert cpu_seconds(server) - used < 0.3


def test_a_driver_that_waits_has_an_end_when_asked(two: TwoDomains) -> None:
    _, said = two.run(USER, "info", "disk0", "--wait", "0.3", code=1)
    assert "has not answered within 0.3 s" in said


def test_kill_9_of_the_backend_under_verified_writes(two: TwoDomains) -> None:
    server = two.serve()
    user = two.start(USER, "verify", "disk0", "--size", str(DISK_BYTES), "--block", "4096")
    two.wait_for_log(server, "queue 0 started")
    for _ in range(3):
        time.sleep(0.1)
        server.kill()
        server.wait()
        server = two.serve()
        two.wait_for_log(server, "queue 0 started")
    report = two.finish(user)
    assert f"{DISK_BYTES} bytes verified, probed" in report, two.log(user)
    assert digest_in(report) == image_digest(two)
    assert "probing the disk again" in two.log(user)


def test_kill_9_of_the_driver_under_verified_writes(two: TwoDomains) -> None:
    server = two.serve()
    for _ in range(3):
        user = two.start(USER, "verify", "disk0", "--size", str(DISK_BYTES), "--block", "4096", "--seed", "99")
        two.wait_for_log(server, "queue 0 started")
        time.sleep(0.1)
        user.kill()
        user.wait()
    report, _ = two.run(USER, "verify", "disk0", "--size", str(DISK_BYTES), "--block", "4096")
    assert digest_in(report.decode()) == image_digest(two)
    assert server.poll() is None


def test_one_static_port_has_one_process(two: TwoDomains) -> None:
    server = two.serve()
    two.wait_for_log(server, "ready")
    _, said = two.run(SERVER, "serve", "disk0", "--file", str(two.image), code=1)
    assert "EBUSY" in said


def test_garbage_in_the_region_is_no_session(two: TwoDomains) -> None:
    """The region holds scrub bytes, then noise; the two ends meet all the same."""
    import os

    os.pwrite(two.region.descriptor, os.urandom(64 << 10), 0)
    two.serve()
    two.run(USER, "verify", "disk0", "--size", "64K")


def test_sigterm_ends_the_backend_cleanly(two: TwoDomains) -> None:
    server = two.serve()
    two.wait_for_log(server, "ready")
    server.terminate()
    assert server.wait(30) == 0
    assert "ended" in two.log(server)


def test_the_same_over_argo_with_memory_by_grants(two: TwoDomains) -> None:
    server = two.start("dom0", "serve", "disk1", "--file", str(two.image))
    report, _ = two.run(USER, "verify", "disk1", "--size", str(DISK_BYTES))
    assert f"{DISK_BYTES} bytes verified" in report.decode()
    assert digest_in(report.decode()) == image_digest(two)
    assert "Argo port 0x200" in two.run(USER, "info", "disk1")[0].decode()
    assert server.poll() is None


@pytest.mark.parametrize("killed", ["backend", "driver"])
def test_kill_9_over_argo(two: TwoDomains, killed: str) -> None:
    server = two.start("dom0", "serve", "disk1", "--file", str(two.image))
    user = two.start(USER, "verify", "disk1", "--size", str(DISK_BYTES), "--block", "4096")
    two.wait_for_log(server, "queue 0 started")
    time.sleep(0.1)
    victim = server if killed == "backend" else user
    victim.kill()
    victim.wait()
    if killed == "backend":
        two.start("dom0", "serve", "disk1", "--file", str(two.image))
    else:
        user = two.start(USER, "verify", "disk1", "--size", str(DISK_BYTES), "--block", "4096")
    report = two.finish(user)
    assert digest_in(report) == image_digest(two), two.log(user)
