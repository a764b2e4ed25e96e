"""`xenvirtio static`: a statically partitioned system from one description."""

from __future__ import annotations

import argparse
from pathlib import Path

DESCRIPTION = """\
Statically partitioned systems: Xen builds all domains at boot, from a device tree, without a toolstack. One description
says which domains, memory, shared regions, event channels and virtio devices there are.

  xenvirtio static check system.toml         # what is wrong with it, before anybody boots it
  xenvirtio static show system.toml          # the memory map and the channels; --svg map.svg
  xenvirtio static build system.toml -o out  # trees, boot modules, configurations
"""

FILE_HELP = "the description; docs/static.md has every key"

CHECK_DESCRIPTION = """\
Check a description: overlaps in each domain's addresses (a direct-mapped domain has the host's) and on the host, Xen's
own windows, channels that contradict each other, sums of memory, names and numbers, and what the Xen it is for lacks.
Each line names both places that do not fit together.

Kernels and ramdisks that lie beside the description are placed as `static build` does, so that their sizes count too.
"""

CHECK_EPILOG = """\
error    Xen refuses it or panics, or two parts destroy each other
warning  works under conditions that the line names
note     what to know

Exit codes: 0 no errors (with --strict: no warnings either), 1 some, 2 not a description: the line says which key.
"""

SHOW_DESCRIPTION = """\
Show a description with everything assigned that it leaves out: the memory of the host and of each domain, shared
regions joined across, event channels and devices. It need not be free of errors.
"""

BUILD_DESCRIPTION = """\
Check a description, then write all that it stands for into one folder: the host tree with Xen's /chosen, a partial tree
for each domain, the boot modules (kernels with a gate where the description says so, ramdisks with the plan inside),
ImageBuilder's and Yocto's files, what a Zephyr domain is built with, and backends.toml.

  xenvirtio static build system.toml -o out/ --host-tree board.dtb --files build/deploy

The same inputs give the same bytes. A failure leaves the former folder as it was.
"""

BUILD_EPILOG = """\
out/README.txt says what each file is for, docs/static-build.md says more. dtc compiles the trees: Debian package
device-tree-compiler; pip install 'xenvirtio[static]' brings the library that reads the host's.

Exit codes: 0 written, 1 the description has errors (their lines are those of `static check`) or something failed,
2 wrong usage, an input that is missing or not what it should be.
"""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    static = subparsers.add_parser(
        "static",
        help="a statically partitioned system from one description",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = static.add_subparsers(dest="static_command", metavar="COMMAND", required=True)
    check = commands.add_parser(
        "check",
        help="what is wrong with a description",
        description=CHECK_DESCRIPTION,
        epilog=CHECK_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    check.add_argument("file", type=Path, metavar="FILE", help=FILE_HELP)
    check.add_argument("--strict", action="store_true", help="fail for warnings as well")
    check.add_argument("--format", choices=("text", "json"), default="text", help="json: one object with ok, findings")
    check.set_defaults(run=run_check)
    show = commands.add_parser(
        "show",
        help="draw the memory map and the channels",
        description=SHOW_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    show.add_argument("file", type=Path, metavar="FILE", help=FILE_HELP)
    show.add_argument("--svg", type=Path, metavar="OUT", help="write a picture to OUT instead")
    show.set_defaults(run=run_show)
    _add_build(commands)


def _add_build(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    build = commands.add_parser(
        "build",
        help="write trees, boot modules and configurations",
        description=BUILD_DESCRIPTION,
        epilog=BUILD_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    build.add_argument("file", type=Path, metavar="FILE", help=FILE_HELP)
    build.add_argument("-o", "--output", type=Path, required=True, metavar="OUT", help="the folder to write")
    build.add_argument(
        "--files",
        type=Path,
        action="append",
        metavar="DIR",
        help="where kernels, ramdisks and files are; may be given several times; default: the description's folder",
    )
    build.add_argument(
        "--host-tree", type=Path, metavar="TREE", help="the machine's .dtb or .dts, instead of the description's"
    )
    build.add_argument("--xen", metavar="VERSION", help="build for this Xen instead of the description's")
    build.add_argument("--force", action="store_true", help="replace OUT even if static build did not write it")
    build.set_defaults(run=run_build)


def run_check(options: argparse.Namespace) -> int:
    from xenvirtio.cli.static_check import run

    return run(options)


def run_show(options: argparse.Namespace) -> int:
    from xenvirtio.cli.static_show import run

    return run(options)


def run_build(options: argparse.Namespace) -> int:
    from xenvirtio.cli.static_build import run

    return run(options)
