"""An Argo ring over memory that anybody may have written."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from xenvirtio.channels.argo_ring import DATA_OFFSET, ArgoRing
from xenvirtio.errors import PeerProtocolError
from xenvirtio.memory.buffer import HostBuffer

LENGTH_BYTES = 256
small = st.integers(0, LENGTH_BYTES // 16).map(lambda slots: slots * 16)
pointers = st.one_of(small, st.integers(0, 0xFFFFFFFF))


@given(st.lists(st.tuples(pointers, st.binary(max_size=LENGTH_BYTES), small), max_size=20))
def test_any_memory(steps: list[tuple[int, bytes, int]]) -> None:
    buffer = HostBuffer(DATA_OFFSET + LENGTH_BYTES)
    ring = ArgoRing(buffer.address, LENGTH_BYTES)
    for tx, data, at in steps:
        place = min(at, LENGTH_BYTES - len(data))
        buffer.view[DATA_OFFSET + place : DATA_OFFSET + place + len(data)] = data
        buffer.view[4:8] = tx.to_bytes(4, "little")
        for _ in range(LENGTH_BYTES // 16 + 1):  # never more messages than slots
            try:
                message = ring.next_message()
            except PeerProtocolError:
                break
            if message is None:
                break
            assert len(message.data) <= LENGTH_BYTES
        else:
            raise AssertionError("the ring does not end")
        assert int.from_bytes(buffer.view[0:4], "little") % 16 == 0
        assert int.from_bytes(buffer.view[0:4], "little") < LENGTH_BYTES
