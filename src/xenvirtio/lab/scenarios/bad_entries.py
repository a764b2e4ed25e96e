"""Entries and images that cannot be served: a one-line warning each, with the way out; others are not disturbed."""

from __future__ import annotations

from typing import Any

from xenvirtio.ids import DomId
from xenvirtio.lab.load import Load, run_load
from xenvirtio.lab.scenarios.kernel_log import KernelLog
from xenvirtio.lab.scenarios.registry import Scenario
from xenvirtio.lab.scenarios.stage import DISK_FOLDER, Stage
from xenvirtio.lab.scenarios.tree import check_disk
from xenvirtio.lab.toolstack import GuestConfig, MemoryMode

DEVICES = f"""
[[device]]
guest = "bad"
type = "block"
devid = 0
resource = {{ file = "{DISK_FOLDER}/nothing.img" }}

[[device]]
guest = "bad"
type = "block"
devid = 1
resource = {{ file = "{DISK_FOLDER}" }}

[[device]]
guest = "bad"
type = "block"
devid = 2
resource = {{ file = "{DISK_FOLDER}/odd.img" }}
"""

BLOCK = "type=virtio,device2, transport=mmio, grant_usage=0"
BY_XL = (BLOCK, BLOCK, BLOCK, "type=virtio,device2", "type=virtio,device7f, transport=mmio, grant_usage=0", BLOCK)
"""As xl writes them: three images that cannot be, no transport, an unknown type, no line in backends.toml."""

BY_HAND: tuple[tuple[str, dict[str, str]], ...] = (
    ("virtio/{domid}/6", {"type": "virtio,device2", "base": "0", "irq": "0", "transport": "mmio"}),
    ("virtio/{domid}/7", {"type": "virtio,device2", "base": "2000000 please", "irq": "33", "transport": "mmio"}),
    ("virtio/{domid}/8", {"type": "virtio,device2", "transport": "mmio"}),
    ("virtio_disk/{domid}/51712", {"base": "33554432", "irq": "33", "transport": "mmio", "params": "/srv/lab"}),
)
"""What a script with a mistake might write."""

EXPECTED = (
    # what the message names, and a word of the way out
    r"/nothing\.img: does not exist; create it",
    r"disks: is a directory; give the path",
    r"/odd\.img: has 1000 bytes, not a multiple of 512; .*truncate -s 1024",
    r"virtio/\d+/3: transport is 'unknown'; write transport=mmio",
    r"virtio/\d+/4: unknown device type 'virtio,device7f'; known: ",
    r"virtio/\d+/5: no \[\[device\]\] entry .*; add one",
    r"virtio/\d+/6: no MMIO window was assigned .*; ",
    r"virtio/\d+/7: base is '2000000 please', not a number",
    r"virtio/\d+/8: key 'base' is missing; ",
    r"/srv/lab: is a directory; give the path",
)


def run(stage: Stage) -> dict[str, Any]:
    good_disk = stage.disk("good", 8)
    stage.dom0.run(f"rm -f {DISK_FOLDER}/nothing.img; truncate -s 1000 {DISK_FOLDER}/odd.img")
    _check_configuration_errors(stage)
    with stage.serve(DEVICES, expected_warnings=[rf"not served: .*{pattern}" for pattern in EXPECTED]) as backend:
        good = stage.toolstack.create(GuestConfig("good", disks=(good_disk,)))
        log = KernelLog(good)
        load = Load(good, "verify /dev/vda -d 4 -t 3600")

        # Paused: with nobody behind its devices' registers the guest would die of its first access.
        bad = stage.toolstack.create(GuestConfig("bad", memory_mib=64, virtio=BY_XL), paused=True)
        for path, keys in BY_HAND:
            _write_entry(stage, bad.domid, path.format(domid=bad.domid), keys)
        shown = [backend.wait_warning(pattern) for pattern in EXPECTED]
        assert not any("\n" in line for line in shown), f"a warning has more than one line: {shown}"

        served = backend.requests_of("good")
        backend.wait_progress("good", served + 100, 120)
        warnings = backend.warnings()
        assert len(warnings) == len(EXPECTED), f"{len(warnings)} warnings for {len(EXPECTED)} mistakes: {warnings}"
        for path, _ in BY_HAND:
            stage.dom0.run(f"xenstore-rm /local/domain/0/backend/{path.format(domid=bad.domid)}")
        bad.destroy()
        stage.toolstack.wait_gone(bad.domid)

        _mend_and_reload(stage)
        result = load.finish()
        log.check_silent()
        check_disk(stage.dom0, good, good_disk.target)
        good.shut_down()
    return {"warnings": shown, "good_guest_requests": result.requests}


def _write_entry(stage: Stage, domid: DomId, path: str, keys: dict[str, str]) -> None:
    """All of an entry in the order of a careless script: the key `state`, which makes it count, comes last."""
    full = f"/local/domain/0/backend/{path}"
    pairs = {"frontend-id": str(domid), "online": "1", **keys, "state": "1"}
    stage.dom0.run("xenstore-write " + " ".join(f"'{full}/{key}' '{value}'" for key, value in pairs.items()))


def _mend_and_reload(stage: Stage) -> None:
    """The way out works: with the image there and SIGHUP sent, the entry that was refused is served."""
    backend = stage.backends[-1]
    bad = stage.toolstack.create(GuestConfig("bad", memory_mib=64, virtio=(BLOCK,)), paused=True)
    backend.wait_for(lambda _: sum("nothing.img" in w for w in backend.warnings()) == 2, "the warning again", 60)
    stage.dom0.run(f"truncate -s 8M {DISK_FOLDER}/nothing.img")
    backend.signal("HUP")
    backend.wait_for(
        lambda records: any(r["message"] == "device attached" and "bad/" in r["device"] for r in records),
        "the mended device",
        60,
    )
    stage.toolstack.unpause(bad)
    bad.wait_prompt()
    run_load(bad, "verify /dev/vda -d 4 -t 1")
    bad.shut_down()


def _check_configuration_errors(stage: Stage) -> None:
    """A wrong key, type or path in backends.toml: exit status 2 and one line."""
    mistakes = {
        '[daemon]\nstate_dir = "here"\n': r"state_dir",
        "[daemon]\nsave_dir = 1\n": r"unknown key 'save_dir'",
        '[[device]]\nguest = "a"\ntype = "floppy"\nresource = { file = "/a" }\n': r"floppy",
        '[[device]]\nguest = "a"\ntype = "block"\nresource = { file = 7 }\n': r"file",
        "no toml\n": r"not TOML",
    }
    for text, named in mistakes.items():
        stage.dom0.write_file("/run/lab/mistake.toml", text)
        answer = stage.dom0.run("xenvirtio serve /run/lab/mistake.toml", 60, check=False)
        lines = answer.output.strip().splitlines()
        assert answer.status == 2, f"{text!r} ends with {answer.status}: {answer.output}"
        assert len(lines) == 1, f"{text!r} gives more than a line: {lines}"
        assert named in lines[0], f"{text!r}: {lines[0]!r} does not name {named!r}"


SCENARIO = Scenario(
    "bad-entries",
    "entries and images that cannot be served: one line each, nothing else disturbed",
    run,
    modes=(MemoryMode.FOREIGN,),
)
