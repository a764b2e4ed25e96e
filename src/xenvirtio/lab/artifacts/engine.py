"""The working tree's package for dom0, its engine compiled for arm64 and CPython 3.13."""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import xenvirtio
from xenvirtio._build import COMPILER_DIRECTIVES, ENGINE_MODULES
from xenvirtio.lab.apt import open_archive, unpack
from xenvirtio.lab.artifacts.bytecode import byte_code_input, compile_tree
from xenvirtio.lab.artifacts.image import make_ext4
from xenvirtio.lab.paths import artifact, forget_old, key_of
from xenvirtio.lab.process import jobs, run_logged

_RECIPE = "1"
_HEADERS_PACKAGE = "libpython3.13-dev"
_SUFFIX = ".cpython-313-aarch64-linux-gnu.so"
_PACKAGE_ROOT = Path(xenvirtio.__file__).parent
_SIZE_MIB = 96
"""Room for the package, its compiled modules and byte code, which dom0's Python writes where the host could not."""

_CIMPORT = re.compile(r"^\s*(?:from|cimport)\s+(xenvirtio[\w.]*)(?=\s+cimport|\s*$)", re.MULTILINE)

_COMMAND = """\
#!/usr/bin/python3
import sys

from xenvirtio.cli.main import main

sys.exit(main())
"""


def engine_modules() -> tuple[str, ...]:
    """Dotted names of the modules that are compiled, from the same list as the installation's build."""
    return tuple(name for name in ENGINE_MODULES if _source_of(name).exists())


def _directives() -> list[str]:
    """Cython's options, the same as in the installation's build."""
    directives = {**COMPILER_DIRECTIVES, "show_performance_hints": False}
    return [part for name, value in directives.items() for part in ("-X", f"{name}={value}")]


def build_headers() -> Path:
    """The `usr/include` of Debian 13's CPython for arm64."""

    def build(result: Path, scratch: Path) -> None:
        (package,) = open_archive().download([_HEADERS_PACKAGE], closure=False)
        unpack(package, scratch / "root", scratch / "build.log")
        shutil.copytree(scratch / "root/usr/include", result / "include", symlinks=True)

    return artifact("python-headers", key_of(_RECIPE, _HEADERS_PACKAGE), build) / "include"


def build_engine_module(name: str) -> Path:
    """One compiled module, the `.so`; rebuilt when its source or a .pxd that it is compiled with changes."""
    source = _source_of(name)
    declarations = declarations_of(name)
    options = _directives()
    key = key_of(
        _RECIPE, name, *options, source, *(str(path.relative_to(_PACKAGE_ROOT)) for path in declarations), *declarations
    )

    def build(result: Path, scratch: Path) -> None:
        log = scratch / "build.log"
        generated = scratch / f"{source.stem}.c"
        command: list[str | Path] = [
            sys.executable,
            "-m",
            "cython",
            *options,
            "--module-name",
            name,
            "-o",
            generated,
            source,
        ]
        run_logged(f"translating {name}", command, log, cwd=_PACKAGE_ROOT.parent)
        headers = build_headers()
        flags = ["-O2", "-shared", "-fPIC", "-fno-strict-aliasing", "-DNDEBUG"]
        includes = [f"-I{headers / 'python3.13'}", f"-I{headers}", f"-I{source.parent}", f"-I{_PACKAGE_ROOT.parent}"]
        output = result / f"{source.stem}{_SUFFIX}"
        run_logged(f"compiling {name}", ["aarch64-linux-gnu-gcc", *flags, *includes, "-o", output, generated], log)

    label = f"engine-{name}"
    folder = artifact(label, key, build)
    forget_old(label, key)
    return folder / f"{source.stem}{_SUFFIX}"


def declarations_of(name: str) -> list[Path]:
    """The .pxd of a module and all that it cimports, theirs included, in the order of their paths."""
    found: set[Path] = set()
    wanted = [name]
    while wanted:
        base = _PACKAGE_ROOT.parent.joinpath(*wanted.pop().split("."))
        for path in (base.with_suffix(".pxd"), base.with_suffix(".pyx")):
            if path.is_file() and path not in found:
                found.add(path)
                wanted += _CIMPORT.findall(path.read_text())
    return sorted(path for path in found if path.suffix == ".pxd")


def build_engine(modules: Sequence[str] | None = None) -> dict[str, Path]:
    """The compiled modules by dotted name, all of the engine's without `modules`."""
    names = engine_modules() if modules is None else modules
    build_headers()  # before the threads, which would all wait for it
    with ThreadPoolExecutor(jobs()) as compilers:
        return dict(zip(names, compilers.map(build_engine_module, names), strict=True))


def package_inputs(modules: Sequence[str] | None = None) -> str:
    """A hash over everything `put_package` uses."""
    sources = _shipped_sources()
    names = [str(path.relative_to(_PACKAGE_ROOT)) for path in sources]
    return key_of(_RECIPE, *names, *sources, *map(str, build_engine(modules).values()), byte_code_input())


def put_package(
    folder: Path, log: Path, modules: Sequence[str] | None = None, *, without: Sequence[str] = ()
) -> None:
    """Make `folder` what /opt/xenvirtio is: the package, its engine, byte code and `bin/xenvirtio`.

    `without` leaves out sub-packages by their folder's name.
    """
    for path in _shipped_sources():
        name = path.relative_to(_PACKAGE_ROOT)
        if name.parts[0] in without:
            continue
        target = folder / "xenvirtio" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    for dotted, path in build_engine(modules).items():
        shutil.copy(path, folder.joinpath(*dotted.split(".")).parent / path.name)
    compile_tree(folder, "xenvirtio", log, checked=True)
    command = folder / "bin/xenvirtio"
    command.parent.mkdir()
    command.write_text(_COMMAND)
    command.chmod(0o755)


def build_package_image(modules: Sequence[str] | None = None) -> Path:
    """`package.ext4`, mounted at /opt/xenvirtio in dom0: the package, its engine and `bin/xenvirtio`.

    Takes a few seconds when no compiled module changed.
    """
    key = package_inputs(modules)

    def build(result: Path, scratch: Path) -> None:
        put_package(scratch / "tree", scratch / "build.log", modules)
        make_ext4(
            result / "package.ext4", scratch / "tree", label="package", size_mib=_SIZE_MIB, log=scratch / "build.log"
        )

    image = artifact("package", key, build) / "package.ext4"
    forget_old("package", key)
    return image


def _shipped_sources() -> list[Path]:
    return sorted(path for path in _PACKAGE_ROOT.rglob("*") if path.is_file() and _is_shipped(path))


def _source_of(name: str) -> Path:
    base = _PACKAGE_ROOT.parent.joinpath(*name.split("."))
    return base.with_suffix(".pyx") if base.with_suffix(".pyx").exists() else base.with_suffix(".py")


def _is_shipped(path: Path) -> bool:
    """Sources and data, not what the host's own build left beside them."""
    return "__pycache__" not in path.parts and path.suffix in (".py", ".pxd", ".typed", ".toml", ".json", ".tsv")
