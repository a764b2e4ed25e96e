from __future__ import annotations

from xenvirtio.ids import DomId
from xenvirtio.lab.domain_console import PIECE_LENGTH, domain_lines


def test_pieces_of_one_line_are_joined_and_other_voices_left_out() -> None:
    long = "x" * PIECE_LENGTH
    log = (
        "(XEN) DOM1: short\r\r\n"
        "dom0 says DOM1: nothing\r\n"
        f"(XEN) DOM1: {long}\r\n"
        "(XEN) DOM2: in between\r\r\n"
        "(XEN) DOM1: rest\r\r\n"
        "(XEN) [12:00] DOM1: \r\r\n"
        "(XEN) DOM1: not finish"
    )
    assert domain_lines(log, DomId(1)) == ["short", long + "rest", ""]
    assert domain_lines(log, DomId(2)) == ["in between"]
