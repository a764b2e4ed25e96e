"""Values in files that a shell reads."""

from __future__ import annotations


def bash_quoted(text: str) -> str:
    """One word for bash, nothing in it expanded; always quoted."""
    return "'" + text.replace("'", "'\\''") + "'"
