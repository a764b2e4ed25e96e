"""What one drain of a queue yields: descriptor chains as flat arrays, no object per descriptor.

For chain `c` of `count`: `head[c]` names it in the used ring; its buffers are `segments` number
`first[c]` .. `first[c] + segment_count[c] - 1`, the device-readable ones (`readable_count[c]` of them) first.
`readable_bytes` and `writable_bytes` are their sums. The device sets `written[c]`, the bytes it wrote (used length).
`address` and `length` are per segment: DMA address and bytes, never zero bytes.

All values were read from guest memory exactly once and are ours now. `abandoned`, set from another thread, asks the
device to be quick; where it stops early it says so by `unfinished`. Both stay set: such a queue goes no further.
"""

from __future__ import annotations

from array import array


class ChainBatch:
    def __init__(self, chain_capacity: int = 64, segment_capacity: int = 2304) -> None:
        self.abandoned = False
        self.unfinished = False
        self.count = 0
        self.segments = 0
        self.chain_capacity = chain_capacity
        self.segment_capacity = segment_capacity
        self.head = memoryview(array("H", bytes(2 * chain_capacity)))
        self.first = memoryview(array("I", bytes(4 * chain_capacity)))
        self.segment_count = memoryview(array("I", bytes(4 * chain_capacity)))
        self.readable_count = memoryview(array("I", bytes(4 * chain_capacity)))
        self.readable_bytes = memoryview(array("Q", bytes(8 * chain_capacity)))
        self.writable_bytes = memoryview(array("Q", bytes(8 * chain_capacity)))
        self.written = memoryview(array("I", bytes(4 * chain_capacity)))
        self.address = memoryview(array("Q", bytes(8 * segment_capacity)))
        self.length = memoryview(array("I", bytes(4 * segment_capacity)))

    def clear(self) -> None:
        self.count = 0
        self.segments = 0
