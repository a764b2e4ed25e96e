from __future__ import annotations

import pytest

from xenvirtio.errors import ResourceError
from xenvirtio.lab.hypervisor_view import count_channels, count_grants

CHANNELS = """\
(XEN) 'e' pressed -> dumping event-channel info
(XEN) Event channel information for domain 0:
(XEN) Polling vCPUs: {}
(XEN)     port [p/m/s]
(XEN)        1 [0/0/  -   ]: s=3 n=1 x=0 d=0 p=4
(XEN)        2 [0/0/  -   ]: s=5 n=0 x=0 v=2
(XEN)        5 [0/0/  -   ]: s=3 n=0 x=0 d=7 p=3
(XEN)        6 [0/1/  -   ]: s=3 n=1 x=0 d=7 p=5
(XEN) Event channel information for domain 7:
(XEN)        3 [0/0/  -   ]: s=3 n=0 x=0 d=1 p=5
"""

GRANTS = """\
(XEN) gnttab_usage_print_all [ key 'g' pressed
(XEN)       -------- active --------       -------- shared --------
(XEN) [ref] localdom mfn      pin          localdom gmfn     flags
(XEN) grant-table for remote d7 (v1)
(XEN)   1 frames (64 max), 2 maptrack frames (1024 max)
(XEN) [0x008]      0 0x85f9f 0x00000001          0 0x048d74 0x19
(XEN) [0x009]      0 0x85f9f 0x00000001          0 0x048d75 0x19
(XEN) gnttab_usage_print_all ] done
"""


def test_only_dom0s_channels_to_guests_count() -> None:
    assert count_channels(CHANNELS + GRANTS) == 2


def test_the_last_dump_counts() -> None:
    assert count_channels(CHANNELS + CHANNELS.partition("(XEN)        5")[0] + GRANTS) == 0


def test_grants_in_use_are_counted() -> None:
    assert count_grants(CHANNELS + GRANTS) == 2
    assert count_grants(GRANTS + GRANTS.replace("[0x00", "none")) == 0


def test_a_missing_dump_is_an_error() -> None:
    with pytest.raises(ResourceError, match="debug key e"):
        count_channels("(XEN) nothing")
    with pytest.raises(ResourceError, match="debug key g"):
        count_grants("(XEN) nothing")
