"""`xenvirtio metadata` over every channel, each program a process of its own where two domains talk."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from xenvirtio.cli.main import main
from xenvirtio.xen.emulated import EmulatedHost
from xenvirtio.xenstore.serve import XenStoreService
from xenvirtio.xenstore.server import XenStoreServer

PLAN = """
format = 1
name = "frontend"
domid = 1
generation = "x"
[domains]
dom0 = 0
frontend = 1
[[device]]
name = "root"
type = "block"
role = "frontend"
peer = "dom0"
devid = 0
transport = "mmio"
base = 0x2000000
irq = 33
grants = true
"""


@pytest.fixture
def socket(tmp_path: Path) -> Iterator[Path]:
    with XenStoreService(XenStoreServer(time.monotonic)) as service:
        service.listen(tmp_path / "xenstore")
        yield tmp_path / "xenstore"


def test_over_xenstore(socket: Path, capsys: pytest.CaptureFixture[str]) -> None:
    where = ["--socket", str(socket)]
    assert main(["metadata", "register", "root", "--type", "block", *where, "base=0x2000000", "note=a=b"]) == 0
    assert main(["metadata", "find", *where]) == 0
    assert capsys.readouterr().out == "0 root block base=0x2000000 note=a=b\n"
    assert main(["metadata", "find", *where, "--type", "block", "--name", "root", "--format", "json"]) == 0
    fields = {"base": "0x2000000", "note": "a=b"}
    assert json.loads(capsys.readouterr().out) == [{"domid": 0, "name": "root", "type": "block", "fields": fields}]
    assert main(["metadata", "withdraw", "root", *where]) == 0
    assert main(["metadata", "find", *where]) == 1


def test_waiting_for_a_record(socket: Path, capsys: pytest.CaptureFixture[str]) -> None:
    where = ["--socket", str(socket)]
    register = ["metadata", "register", "root", "--type", "block", *where, "a=b"]
    late = threading.Timer(0.3, lambda: subprocess.run([sys.executable, "-m", "xenvirtio", *register], check=True))
    late.start()
    assert main(["metadata", "find", "--type", "block", "--wait", *where]) == 0
    late.join()
    assert capsys.readouterr().out == "0 root block a=b\n"
    assert main(["metadata", "find", "--type", "net", "--wait", "--timeout", "0.1", *where]) == 1


def test_over_a_plan(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan = tmp_path / "plan.toml"
    plan.write_text(PLAN)
    assert main(["metadata", "find", "--plan", str(plan)]) == 0
    assert capsys.readouterr().out.startswith("1 root block transport=mmio backend=0 devid=0 base=0x2000000 irq=33")
    assert main(["metadata", "register", "root", "--type", "block", "--plan", str(plan), "irq=33"]) == 0
    assert main(["metadata", "register", "root", "--type", "block", "--plan", str(plan), "irq=34"]) == 2
    assert capsys.readouterr().err == f"xenvirtio: {plan}: device 'root': irq: found '34'; allowed: 33\n"


def test_over_argo(tmp_path: Path) -> None:
    with EmulatedHost() as host:
        host.listen(tmp_path / "hypervisor")
        domid = str(host.create_domain(memory_bytes=4096).domid)
        base = [sys.executable, "-m", "xenvirtio", "metadata"]
        emulated = ["--emulated", str(tmp_path)]
        argo = ["--via", "argo", *emulated]
        registry = subprocess.Popen([*base, "serve", "--from", domid, *emulated], stderr=subprocess.PIPE, text=True)
        try:
            assert registry.stderr is not None
            assert registry.stderr.readline() == "registry of domain 0\n"
            register = [*base, "register", "root", "--type", "block", *argo, "--domid", domid, "irq=33"]
            subprocess.run(register, check=True, timeout=60)
            find = [*base, "find", "--wait", *argo]
            assert subprocess.run(find, check=True, capture_output=True, text=True, timeout=60).stdout == (
                f"{domid} root block irq=33\n"
            )
            registry.send_signal(signal.SIGTERM)
            assert registry.wait(60) == 0
        finally:
            registry.kill()
            registry.communicate()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (["base"], "base: is no KEY=VALUE"),
        (["a=1", "a=2"], "a=2: is given twice"),
        (["a/b=1"], "metadata: root: field: found 'a/b'; allowed: letters, digits"),
    ],
)
def test_wrong_fields(socket: Path, capsys: pytest.CaptureFixture[str], fields: list[str], message: str) -> None:
    assert main(["metadata", "register", "root", "--type", "block", "--socket", str(socket), *fields]) == 2
    assert message in capsys.readouterr().err
