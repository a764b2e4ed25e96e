"""`xenvirtio static show`: draw a description, for the terminal or as SVG."""

from __future__ import annotations

import argparse
import shutil
import sys

from xenvirtio.cli.static_host import host_reader
from xenvirtio.errors import ResourceError
from xenvirtio.static.description_loader import load_description
from xenvirtio.static.resolve import resolve
from xenvirtio.static.show_svg import as_svg
from xenvirtio.static.show_text import PLAIN, as_text


def run(options: argparse.Namespace) -> int:
    system = resolve(load_description(options.file, host_reader([options.file.parent])))
    if options.svg is not None:
        try:
            options.svg.write_text(as_svg(system), encoding="utf-8")
        except OSError as error:
            raise ResourceError(f"{options.svg}: {error.strerror}") from error
        return 0
    text = as_text(system, shutil.get_terminal_size().columns)
    try:
        text.encode(sys.stdout.encoding)
    except UnicodeEncodeError:
        text = text.translate(PLAIN)
    print(text)
    return 0
