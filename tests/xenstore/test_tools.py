"""Debian's own XenStore tools (package xenstore-utils) against our server."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from xenvirtio.xenstore.client import XenStoreClient
from xenvirtio.xenstore.serve import XenStoreService

pytestmark = pytest.mark.skipif(shutil.which("xenstore-ls") is None, reason="package xenstore-utils is not installed")

Run = Callable[..., str]


@pytest.fixture
def service_path(tmp_path: Path) -> Iterator[Path]:
    with XenStoreService() as service:
        service.listen(tmp_path / "socket")
        yield tmp_path / "socket"


@pytest.fixture
def environment(service_path: Path) -> dict[str, str]:
    return dict(os.environ, XENSTORED_PATH=str(service_path))


@pytest.fixture
def run(environment: dict[str, str]) -> Run:
    def run_tool(tool: str, *arguments: str, code: int = 0) -> str:
        command = [f"xenstore-{tool}", *arguments]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=10)
        assert done.returncode == code, (command, done.stderr)
        return done.stdout

    return run_tool


def test_write_read_list_remove(run: Run) -> None:
    run("write", "/a/b", "hello", "/a/c", "world")
    assert run("read", "/a/b", "/a/c") == "hello\nworld\n"
    assert run("read", "-p", "/a/b") == "/a/b: hello\n"
    assert run("list", "/a") == "b\nc\n"
    run("exists", "/a/b")
    run("exists", "/a/none", code=1)
    run("read", "/a/none", code=1)
    run("rm", "/a/b")
    assert run("list", "/a") == "c\n"
    run("rm", "-t", "/a/c")
    assert run("list", "/") == "tool\n"


def test_permissions(run: Run) -> None:
    run("write", "/a", "1")
    run("chmod", "/a", "n0", "r5", "b6")
    assert run("ls", "-f", "-p", "/a") == ""
    assert '/a = "1"   (n0,r5,b6)' in run("ls", "-f", "-p", "/").splitlines()


def test_ls_of_a_directory_beyond_one_message(run: Run, service_path: Path) -> None:
    with XenStoreClient.at(service_path) as client:
        for number in range(600):
            client.write(f"/big/a-rather-long-name-{number}", number)
    lines = run("ls", "-f", "/big").splitlines()
    assert lines == [f'/big/a-rather-long-name-{number} = "{number}"' for number in range(600)]


def test_watch(environment: dict[str, str], run: Run) -> None:
    watcher = subprocess.Popen(
        ["stdbuf", "-oL", "xenstore-watch", "-n", "3", "/a"], env=environment, stdout=subprocess.PIPE, text=True
    )
    assert watcher.stdout is not None
    with watcher.stdout:
        assert watcher.stdout.readline() == "/a\n"
        run("write", "/a/x", "1")
        assert watcher.stdout.readline() == "/a/x\n"
        run("rm", "/a")
        assert watcher.stdout.readline() == "/a\n"
    assert watcher.wait(10) == 0


def test_control(run: Run, environment: dict[str, str]) -> None:
    tool = shutil.which("xenstore-control")
    if tool is None:
        pytest.skip("xenstore-control is a link into xen-utils-common, which is not installed")
    assert run("control", "check").strip() == "OK"
