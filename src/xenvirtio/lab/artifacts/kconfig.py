"""Configuration fragments for Xen and Linux, and the check that none of their options was dropped."""

from __future__ import annotations

import re
from pathlib import Path

from xenvirtio.errors import ConfigurationError

FRAGMENTS = Path(__file__).parent.parent / "fragments"


def check_options(what: str, config: Path, fragment: Path) -> None:
    """See that the finished configuration has every option as the fragment asks for it.

    kconfig drops an option silently when one it depends on is missing; the image then lacks a driver and
    that shows much later.

    Raises:
        ConfigurationError: names the options that are not as asked for.
    """
    have = set(config.read_text().splitlines())
    missing = []
    for line in fragment.read_text().splitlines():
        if not line.startswith("CONFIG_"):
            continue
        name, _, value = line.partition("=")
        if value == "n":
            present = not any(entry.startswith(f"{name}=") for entry in have)
        else:
            present = line in have
        if not present:
            missing.append(line)
    if missing:
        raise ConfigurationError(
            f"{what} configuration", f"{fragment.name}: not taken: {' '.join(missing)}", "add what they depend on"
        )


def known_options(source: Path) -> set[str]:
    """Every option that some Kconfig file below a folder defines, with `CONFIG_` before it."""
    known = set()
    for file in source.rglob("Kconfig*"):
        if file.is_file():
            known |= set(re.findall(r"^\s*(?:menu)?config\s+(\w+)", file.read_text(errors="replace"), re.MULTILINE))
    return {f"CONFIG_{name}" for name in known}
