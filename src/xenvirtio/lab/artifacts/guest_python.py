"""The root of a dom0less guest with Python: an initramfs of busybox, e2fsprogs, CPython and our package, compiled.

Its /init (guest_python/init) runs /start, which a description's `files` place, and reports on the console.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from xenvirtio.lab.artifacts.bytecode import byte_code_input, compile_tree
from xenvirtio.lab.artifacts.engine import package_inputs, put_package
from xenvirtio.lab.artifacts.guest_initramfs import add_guest_base, guest_base_inputs
from xenvirtio.lab.artifacts.tree import add_tree, libraries_of, unpack_tree
from xenvirtio.lab.paths import artifact, forget_old, key_of
from xenvirtio.static.cpio import CpioWriter

_RECIPE = "1"
_PACKAGES = ("python3-minimal", "libpython3.13-stdlib")
_FILES = Path(__file__).parent.parent / "guest_python"
_SHELL = Path(__file__).parent.parent / "guest" / "shell"
_STDLIB = "usr/lib/python3.13"

_UNUSED_MODULES = {
    *("_pydecimal.py", "_pyrepl", "config-3.13-aarch64-linux-gnu", "curses", "dbm", "doctest.py", "email", "ensurepip"),
    *("ftplib.py", "html", "http", "idlelib", "imaplib.py", "lib2to3", "mailbox.py", "multiprocessing"),
    *("pickletools.py", "pydoc.py", "pydoc_data", "sitecustomize.py", "smtplib.py", "sqlite3", "test", "tkinter"),
    *("turtle.py", "turtledemo", "unittest", "venv", "wsgiref", "xml", "xmlrpc", "zoneinfo", "__phello__"),
}
"""Too big for what nothing in a guest imports."""

_KEPT_EXTENSIONS = {
    *("_asyncio", "_contextvars", "_ctypes", "_decimal", "_posixshmem", "_queue", "mmap", "resource", "termios"),
}
"""Of lib-dynload. What else Debian builds as a module needs libraries of megabytes (OpenSSL) or is for tests."""


def build_python_runtime() -> Path:
    """A folder laid out as the guest's root with CPython, its trimmed library and the libraries both need."""
    key = key_of(_RECIPE, *_PACKAGES, *sorted(_UNUSED_MODULES), *sorted(_KEPT_EXTENSIONS), byte_code_input())
    return artifact("guest-python-runtime", key, _build_runtime)


def build_guest_python() -> Path:
    """`guest-python.cpio.gz`; takes a few seconds after a change of the package."""
    key = key_of(
        _RECIPE, guest_base_inputs(), str(build_python_runtime()), package_inputs(), _FILES / "init", _SHELL
    )

    def build(result: Path, scratch: Path) -> None:
        tree = scratch / "tree"
        put_package(tree / "opt/xenvirtio", scratch / "build.log", without=("lab",))
        archive = CpioWriter()
        add_guest_base(archive)
        archive.file("init", (_FILES / "init").read_bytes(), executable=True)
        archive.file("shell", _SHELL.read_bytes())
        add_tree(archive, build_python_runtime())
        add_tree(archive, tree)
        (result / "guest-python.cpio.gz").write_bytes(archive.finish())

    made = artifact("guest-python", key, build)
    forget_old("guest-python", key)
    return made / "guest-python.cpio.gz"


def _build_runtime(result: Path, scratch: Path) -> None:
    root, log = scratch / "root", scratch / "build.log"
    unpack_tree(_PACKAGES, root, log)
    program = root / "usr/bin/python3.13"
    target = result / "usr/bin/python3.13"
    target.parent.mkdir(parents=True)
    shutil.copy(program, target)
    target.with_name("python3").symlink_to("python3.13")
    library = result / _STDLIB
    shutil.copytree(root / _STDLIB, library, ignore=_ignore, symlinks=True)
    compile_tree(result, _STDLIB, log, checked=False)
    (result / "lib").mkdir()
    for name, path in libraries_of([program, *(library / "lib-dynload").iterdir()], root).items():
        shutil.copy(path, result / "lib" / name)


def _ignore(folder: str, names: list[str]) -> set[str]:
    if Path(folder).name == "lib-dynload":
        return {name for name in names if name.partition(".")[0] not in _KEPT_EXTENSIONS}
    top = folder.endswith(_STDLIB)
    return {name for name in names if name == "__pycache__" or (top and name in _UNUSED_MODULES)}
