"""The demonstration says ok only when it is."""

from __future__ import annotations

from pathlib import Path

import pytest

from xenvirtio.sandbox.backend import BackendProcess
from xenvirtio.sandbox.demonstration import Chapter, Demonstration, DeviceReport, Report
from xenvirtio.sandbox.workload import BLOCK_BYTES

DISK_BYTES = 1 << 20
DEVICES = {"alpha": "disk=", "beta": "virtio=", "gamma": "disk="}


class Play:
    """One short demonstration; when a chapter begins, a byte of one image is flipped behind everybody's back."""

    def __init__(self, directory: Path, *, flip: tuple[Chapter, str] | None = None) -> None:
        self.chapters: list[Chapter] = []
        self._directory = directory / "demo"
        self._flip = flip
        self.report = Demonstration(
            self._directory, seconds=0.4, disk_bytes=DISK_BYTES, kills=1, seed=3, tell=self._hear
        ).run()

    def _hear(self, chapter: Chapter, text: str) -> None:
        self.chapters.append(chapter)
        if self._flip is not None and self._flip[0] == chapter:
            with (self._directory / "images" / f"{self._flip[1]}.img").open("r+b") as image:
                image.seek(17 * BLOCK_BYTES + 1234)
                byte = image.read(1)
                image.seek(-1, 1)
                image.write(bytes([byte[0] ^ 1]))

    def device(self, number: int) -> DeviceReport:
        return self.report.devices[number]


def test_the_story_ends_well(tmp_path: Path) -> None:
    play = Play(tmp_path)
    report = play.report
    assert report.problems == []
    assert report.ok
    assert play.chapters == list(Chapter)
    assert [(d.guest, d.disk, d.memory, d.events) for d in report.devices] == [
        ("alpha", "disk=", "foreign", ["reboot", "1 kill"]),
        ("beta", "virtio=", "grants", ["crash", "1 kill"]),
        ("gamma", "disk=, ro", "foreign", ["1 kill"]),
        ("gamma", "disk=", "grants", ["1 kill"]),
    ]
    for device in report.devices:
        assert (device.verified, device.verified_in_guest, device.verified_in_file) == (True, DISK_BYTES, DISK_BYTES)
        assert device.bytes_verified > 2 * DISK_BYTES
        assert device.requests > 16


def test_a_byte_flipped_before_the_guests_look_is_found_twice(tmp_path: Path) -> None:
    play = Play(tmp_path, flip=(Chapter.GUEST_VERIFICATION, "gamma-system"))
    assert not play.report.ok
    assert [device.verified for device in play.report.devices] == [True, True, False, True]
    assert [problem.split(":")[0] for problem in play.device(2).problems] == [
        "gamma-system, block 17 in the guest", "gamma-system, block 17 in the image file",
    ]  # fmt: skip


def test_a_byte_flipped_after_the_guests_looked_is_found_in_the_file(tmp_path: Path) -> None:
    play = Play(tmp_path, flip=(Chapter.FILE_VERIFICATION, "beta"))
    assert not play.report.ok
    assert play.device(1).verified_in_guest == DISK_BYTES
    assert play.device(1).verified_in_file == DISK_BYTES - BLOCK_BYTES
    assert [device.verified for device in play.report.devices] == [True, False, True, True]


def test_a_backend_that_ends_by_itself_is_not_ok(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[BackendProcess] = []
    start = BackendProcess.start
    hear = Play._hear

    def start_and_tell(self: BackendProcess) -> None:
        start(self)
        started.append(self)

    def kill_under_load(self: Play, chapter: Chapter, text: str) -> None:
        hear(self, chapter, text)
        if chapter == Chapter.LOAD:
            started[0].kill()

    monkeypatch.setattr(BackendProcess, "start", start_and_tell)
    monkeypatch.setattr(Play, "_hear", kill_under_load)
    report = Play(tmp_path).report
    assert not report.ok
    assert report.problems[0].startswith("the backend has ended by itself, see ")
    assert not any(device.verified for device in report.devices)


def _device(**changes: object) -> DeviceReport:
    device = DeviceReport("block", "g", "disk=", "grants", 4096, 3, 8192, 4096, 4096)
    for name, value in changes.items():
        setattr(device, name, value)
    return device


@pytest.mark.parametrize(
    "device",
    [
        _device(verified_in_guest=0),
        _device(verified_in_file=0),
        _device(verified_in_file=8192),
        _device(problems=["something"]),
    ],
)
def test_ok_needs_every_byte_of_every_device(device: DeviceReport) -> None:
    assert Report([_device()], [], 1, 1.0).ok
    assert not device.verified
    assert not Report([_device(), device], [], 1, 1.0).ok


def test_ok_needs_devices_and_no_problem_elsewhere() -> None:
    assert not Report([], [], 1, 1.0).ok
    assert not Report([_device()], ["the backend ended with exit code 1"], 1, 1.0).ok
