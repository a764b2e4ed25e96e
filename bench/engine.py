"""What the engine costs here, without Xen: a ring round trip, and a cached 4 KiB read through the block device.

    make bench        or        python bench/engine.py [--json]

Rounds of both engines alternate (A B A B) and medians are printed with the spread; compare only within one run.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

ROUNDS = 5
REQUESTS_PER_BATCH = 16
DISK_BYTES = 16 << 20
GUEST_BASE = 0x4000_0000
QUEUE_SIZE = 256
BLOCK_BYTES = 4096


def measure_here(seconds: float) -> dict[str, float]:
    """Return nanoseconds per request of each case, with the engine of this process."""
    from xenvirtio.devices.block.device import BlockDevice
    from xenvirtio.devices.block.driver import BlockDriver
    from xenvirtio.memory.buffer import HostBuffer
    from xenvirtio.memory.regions import RegionMemory, RegionSource, RegionTable
    from xenvirtio.resources.memory import open_memory_disk
    from xenvirtio.virtqueue.batch import ChainBatch
    from xenvirtio.virtqueue.driver import DriverQueue
    from xenvirtio.virtqueue.split import SplitQueue

    guest = HostBuffer(4 << 20)
    used_bytes = 3 * 8192

    class Pages:
        """Hands out guest pages behind the ring."""

        def __init__(self) -> None:
            self._next = used_bytes

        def allocate(self, length_bytes: int) -> tuple[int, int]:
            place = self._next
            self._next += -(-length_bytes // 4096) * 4096
            return GUEST_BASE + place, guest.address + place

    memory = RegionMemory(RegionSource(RegionTable([(GUEST_BASE, guest.length_bytes, guest.address, True)])))
    areas = [guest.address + 8192 * number for number in range(3)]
    driver_queue = DriverQueue(QUEUE_SIZE, *areas, event_index=True)
    queue = SplitQueue(QUEUE_SIZE, *areas, memory, event_index=True, indirect=True)
    device = BlockDevice(open_memory_disk(DISK_BYTES))
    driver = BlockDriver(driver_queue, Pages(), lambda: None)
    batch = ChainBatch(64, 4096)

    def ring() -> None:
        queue.take(batch)
        queue.complete(batch)
        queue.publish()
        queue.rearm_kicks()

    def read() -> None:
        queue.take(batch)
        device.process(0, batch, memory)
        queue.complete(batch)
        queue.publish()
        queue.rearm_kicks()

    return {name: _time(case, driver, seconds) for name, case in (("ring", ring), ("read_4k", read))}


def _time(serve: Callable[[], None], driver: object, seconds: float) -> float:
    """Time the device side alone; the driver side fills and empties the ring between two measurements."""
    from xenvirtio.devices.block.driver import BlockDriver

    assert isinstance(driver, BlockDriver)
    spent = 0.0
    requests = 0
    while spent < seconds / 4 or not requests:
        for number in range(REQUESTS_PER_BATCH):
            driver.submit_read(number * 8, BLOCK_BYTES)
        start = time.perf_counter()
        serve()
        spent += time.perf_counter() - start
        for completion in driver.collect():
            requests += 1
            assert completion.written in (0, BLOCK_BYTES + 1)
    return spent / requests * 1e9


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--seconds", type=float, default=1.0, help="per measurement")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.here:
        print(json.dumps(measure_here(options.seconds)))
        return 0
    samples: dict[str, dict[str, list[float]]] = {"compiled": {}, "interpreted": {}}
    for _ in range(ROUNDS):
        for engine, results in samples.items():
            environment = dict(os.environ, XENVIRTIO_ENGINE=engine)
            command = [sys.executable, __file__, "--here", "--seconds", str(options.seconds)]
            output = subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout
            for case, value in json.loads(output).items():
                results.setdefault(case, []).append(value)
    summary = {
        engine: {
            case: {"median_ns": statistics.median(values), "min_ns": min(values), "max_ns": max(values)}
            for case, values in results.items()
        }
        for engine, results in samples.items()
    }
    if options.json:
        print(json.dumps(summary))
        return 0
    print(f"ns per request, batches of {REQUESTS_PER_BATCH}")
    print(f"{'case':10} {'engine':12} {'median':>12} {'min':>12} {'max':>12}")
    for case in ("ring", "read_4k"):
        for engine in samples:
            row = summary[engine][case]
            print(f"{case:10} {engine:12} {row['median_ns']:12.0f} {row['min_ns']:12.0f} {row['max_ns']:12.0f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
