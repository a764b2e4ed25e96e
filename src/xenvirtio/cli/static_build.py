"""`xenvirtio static build`: check a description, make everything it stands for, put it in a folder."""

from __future__ import annotations

import argparse
import os
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

from xenvirtio.cli.static_check import print_finding, summary
from xenvirtio.cli.static_host import host_reader
from xenvirtio.cli.static_output import Inputs, Output, assemble
from xenvirtio.errors import ConfigurationError, ResourceError
from xenvirtio.resources.device_tree import TreeReader, read_host_source
from xenvirtio.static.check import Finding, Severity, check
from xenvirtio.static.check.host import check_host_tree
from xenvirtio.static.description import Description
from xenvirtio.static.description_loader import load_description
from xenvirtio.static.host_tree import host_of_tree
from xenvirtio.static.resolve import resolve
from xenvirtio.static.span import Span
from xenvirtio.static.system import System
from xenvirtio.static.xen_version import OLDEST, parse_xen_version

MARK = "boot.toml"
"""A folder with this file was written by us, and may be replaced."""


def run(options: argparse.Namespace) -> int:
    description = _described(options)
    system = resolve(description)
    shown: set[Finding] = set()
    if not _passes(system, {}, shown):
        return _stopped(system, shown)
    inputs = Inputs(description.source, options.files or [options.file.parent])
    host_tree = _host_tree(options, description, inputs)
    _see_that_it_may_be_replaced(options.output, options.force, [options.file, host_tree, *(options.files or [])])
    _compare_with_tree(description, host_tree, shown)
    output = assemble(system, inputs, host_tree, print)
    if not _passes(system, {module.file: module.span for module in output.modules}, shown):
        return _stopped(system, shown)
    write_folder(options.output, output)
    print(summary(system, sorted(shown, key=str)))
    print(f"wrote {len(output.files)} files to {options.output}; {options.output / 'README.txt'} says what each is for")
    print("next: boot host.dtb with Xen and load what boot.toml names, or run ImageBuilder on imagebuilder.cfg")
    return 0


def _described(options: argparse.Namespace) -> Description:
    folders = options.files or [options.file.parent]
    description = load_description(options.file, host_reader(folders, options.host_tree))
    if options.xen is None:
        return description
    version = parse_xen_version(options.xen)
    if version is None or version < OLDEST:
        raise ConfigurationError("--xen", f"found {options.xen!r}", f"allowed: a release from {OLDEST} on")
    return replace(description, xen=version)


def _passes(system: System, modules: Mapping[str, Span], shown: set[Finding]) -> bool:
    """Print what is found and was not printed before; say whether one may go on."""
    findings = check(system, modules)
    for finding in findings:
        if finding not in shown:
            print_finding(finding, system.description.source)
            shown.add(finding)
    return not any(finding.severity is Severity.ERROR for finding in findings)


def _compare_with_tree(description: Description, path: Path, shown: set[Finding]) -> None:
    """Print where the tree is not of the described machine. One that says too little is taken as it is."""
    _, blob = read_host_source(path)
    try:
        tree = host_of_tree(TreeReader(blob, str(path)), str(path))
    except ConfigurationError:
        return
    for finding in check_host_tree(description.host, tree):
        print_finding(finding, description.source)
        shown.add(finding)


def _stopped(system: System, shown: set[Finding]) -> int:
    print(summary(system, sorted(shown, key=str)))
    print("nothing was written")
    return 1


def _host_tree(options: argparse.Namespace, description: Description, inputs: Inputs) -> Path:
    if options.host_tree is not None:
        return Path(options.host_tree)
    if description.host_tree is not None:
        return inputs.find(description.host_tree, "system host_tree")
    raise ConfigurationError(
        f"{description.source}: system",
        "there is no host tree to put /chosen into",
        "give --host-tree or host_tree; QEMU writes its own with -machine ...,dumpdtb=FILE",
    )


def _see_that_it_may_be_replaced(folder: Path, force: bool, inputs: Iterable[Path]) -> None:
    for path in inputs:
        if path.resolve().is_relative_to(folder.resolve()):
            raise ConfigurationError(str(folder), f"holds {path}, which is read", "name another folder for the output")
    if not folder.exists() or force:
        return
    if not folder.is_dir() or (any(folder.iterdir()) and not (folder / MARK).is_file()):
        raise ConfigurationError(
            str(folder), "is there and was not written by static build", "name another, or say --force to replace it"
        )


def write_folder(folder: Path, output: Output) -> None:
    """Write all files and only then take the folder's name, so that a failure leaves what was there.

    Raises:
        ResourceError: it cannot be written.
    """
    folder = folder.resolve()
    fresh, former = (folder.with_name(f".{folder.name}.{os.getpid()}.{what}") for what in ("new", "old"))
    try:
        for path, content in output.files.items():
            target = fresh / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)
        if folder.exists():
            folder.rename(former)
        fresh.rename(folder)
    except OSError as error:
        if former.exists() and not folder.exists():
            former.rename(folder)
        raise ResourceError(f"{folder}: cannot be written: {error.strerror or error}") from error
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
        if former.is_dir():
            shutil.rmtree(former, ignore_errors=True)
        else:
            former.unlink(missing_ok=True)
