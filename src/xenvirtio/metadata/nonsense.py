"""Saying once that a domain's record makes no sense, however often it is seen."""

from __future__ import annotations

import logging

from xenvirtio.ids import DomId

log = logging.getLogger("xenvirtio.metadata")

REMEMBERED_MAX = 1000
"""Records remembered as reported; beyond that nothing more is logged. Names are the other domain's to invent."""


class NonsenseLog:
    """Logs each domain's name once."""

    def __init__(self) -> None:
        self._reported: set[tuple[DomId, str]] = set()

    def report(self, domid: DomId, name: str, problem: str) -> None:
        if (domid, name) in self._reported or len(self._reported) >= REMEMBERED_MAX:
            return
        self._reported.add((domid, name))
        log.warning("leaving out a record of domain %d, %s: %s", domid, ascii(name[:80]), problem[:200])
