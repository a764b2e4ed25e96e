"""The `xenvirtio` command.

Exit codes: 0 done, 1 failed (what failed is the last line on standard error), 2 wrong usage or configuration,
130 interrupted.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence

from xenvirtio import __version__
from xenvirtio.errors import ConfigurationError, XenvirtioError

COMMANDS = ("serve", "control", "store", "static", "msg", "argo", "metadata", "doctor", "demo", "lab", "bench")
"""Modules of `xenvirtio.cli`, each with `add_parser(subparsers)`; loaded only when their command is used."""


EXTRAS = {"pexpect": "lab", "qemu": "lab", "libfdt": "static"}
"""Optional modules, and the extra of this package that brings each."""


class _Version(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *unused: object) -> None:
        from xenvirtio._engine_choice import describe_engine

        print(f"xenvirtio {__version__}, {describe_engine()}")
        parser.exit()


def build_parser(only: str | None = None) -> argparse.ArgumentParser:
    """Build the parser; with `only`, load just that command's module."""
    parser = argparse.ArgumentParser(
        prog="xenvirtio",
        description="virtio backends for Xen guests.",
        epilog="Start with: xenvirtio demo (no Xen needed), xenvirtio doctor (in dom0), xenvirtio serve --help.",
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="print the version and how the engine runs")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for command in COMMANDS if only not in COMMANDS else (only,):
        importlib.import_module(f"xenvirtio.cli.{command}").add_parser(subparsers)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    parser = build_parser(arguments[0] if arguments else None)
    options = parser.parse_args(arguments)
    try:
        result: int = options.run(options)
    except ConfigurationError as error:
        print(f"xenvirtio: {error}", file=sys.stderr)
        return 2
    except XenvirtioError as error:
        print(f"xenvirtio: {error}", file=sys.stderr)
        return 1
    except ModuleNotFoundError as error:
        extra = EXTRAS.get((error.name or "").partition(".")[0])
        if extra is None:
            raise
        print(
            f"xenvirtio: {options.command} needs the Python module {error.name}; pip install 'xenvirtio[{extra}]'",
            file=sys.stderr,
        )
        return 1
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        return 1
    return result


if __name__ == "__main__":
    sys.exit(main())
