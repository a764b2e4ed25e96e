"""What dom0less domains print, picked out of Xen's console.

A domain with an emulated pl011 (`vpl011`) has no console of its own when nobody attached one: Xen gathers what it
prints and shows it as `(XEN) DOM1: text`, cut where its buffer is full. A domain's own line ends in a carriage return,
a line that Xen cut does not, which is how the pieces are put together again.

Source: xen/arch/arm/vpl011.c, vpl011_write_data_xen.
"""

from __future__ import annotations

import re

from xenvirtio.ids import DomId

_PIECE = re.compile(r"^\(XEN\) (?:\[[^\]]*\] )?DOM(\d+): (.*)$", re.DOTALL)
PIECE_LENGTH = 126
"""Characters after which Xen cuts: SBSA_UART_OUT_BUF_SIZE less a line end and a zero."""


def domain_lines(serial_log: str, domid: DomId) -> list[str]:
    """All lines that the domain has finished, in order; `serial_log` is the log with its line ends as they came."""
    lines: list[str] = []
    pending = ""
    for line in serial_log.split("\n")[:-1]:
        match = _PIECE.match(line.removesuffix("\r"))
        if match is None or int(match[1]) != domid:
            continue
        text = match[2]
        pending += text.removesuffix("\r")
        if len(text) < PIECE_LENGTH or text.endswith("\r"):
            lines.append(pending)
            pending = ""
    return lines
