"""Run the engine interpreted although compiled modules are there: XENVIRTIO_ENGINE=interpreted.

Tests run both ways by it, and a user can rule the compiled engine out when hunting a fault.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, SourceFileLoader
from pathlib import Path
from types import ModuleType

from xenvirtio._build import ENGINE_MODULES


class _SourceFinder:
    """Finds engine modules as `.py`, before the path finder would prefer the extension beside it."""

    @staticmethod
    def find_spec(
        name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name not in ENGINE_MODULES:
            return None
        source = Path(__file__).parent.joinpath(*name.split(".")[1:]).with_suffix(".py")
        return importlib.util.spec_from_file_location(name, source, loader=SourceFileLoader(name, str(source)))


def use_interpreted_engine() -> None:
    if not any(isinstance(finder, _SourceFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _SourceFinder())


def compiled_modules() -> list[str]:
    """Names of the engine modules that run compiled in this process (importing them all)."""
    return [name for name in ENGINE_MODULES if not _is_source(importlib.import_module(name))]


def _is_source(module: ModuleType) -> bool:
    return str(getattr(module, "__file__", "")).endswith(".py")


def describe_engine() -> str:
    """Say in a few words how the engine runs, for --version, logs and `doctor`."""
    compiled = len(compiled_modules())
    if compiled == len(ENGINE_MODULES):
        return "compiled engine"
    if compiled == 0:
        return "interpreted engine (correct but slow)"
    return f"partly compiled engine ({compiled} of {len(ENGINE_MODULES)} modules)"
