"""Drains one running queue: take a batch, have the device serve it, publish, notify.

The same for every transport; what differs (how the driver is notified, where a kick comes from) is a descriptor or a
callable. The loop itself runs in whatever thread calls `serve`.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from xenvirtio.errors import GuestError, ResourceError, XenvirtioError
from xenvirtio.memory.buffer import HostBuffer
from xenvirtio.memory.guest_memory import GuestMemory
from xenvirtio.virtio.device import Device
from xenvirtio.virtqueue.batch import ChainBatch
from xenvirtio.virtqueue.layout import INDIRECT_MAX
from xenvirtio.virtqueue.split import SplitQueue

try:
    import cython
except ImportError:
    from xenvirtio import interpreted as cython

if not cython.compiled:
    from xenvirtio.memory.raw import or_u32, read, store_u64, write

log = logging.getLogger("xenvirtio.queue")

CHAINS_PER_BATCH = 64
USED_BUFFER = 1


class QueueRunner:
    """One queue of one device, with its kick eventfd and its way to notify the driver.

    `interrupt_status` is the host address of the register whose bit 0 is set before each notification. `irq_fd`, where
    it is not -1, raises the interrupt by one write; otherwise `raise_interrupt` is called.

    `pause` returns with the loop stopped between two batches: no guest memory is touched until `unpause`.
    """

    def __init__(
        self,
        device: Device,
        queue: SplitQueue,
        memory: GuestMemory,
        kick_fd: int,
        interrupt_status: int,
        irq_fd: int,
        raise_interrupt: Callable[[], None],
        fail: Callable[[XenvirtioError], None],
    ) -> None:
        self._device = device
        self._queue = queue
        self._memory = memory
        self._kick_fd = kick_fd
        self._interrupt_status = interrupt_status
        self._irq_fd = irq_fd
        self._raise_interrupt = raise_interrupt
        self._fail = fail
        self._batch = ChainBatch(CHAINS_PER_BATCH, 2 * (queue.size + INDIRECT_MAX))
        self._scratch_buffer = HostBuffer(16)
        self._scratch = self._scratch_buffer.address
        self._stopping = False
        self._gate = threading.Lock()
        # Held by whoever wants the gate next: locks are not fair, and a busy queue would take the gate again and again.
        self._turnstile = threading.Lock()
        self.batches = 0
        self.requests = 0
        self.interrupts = 0

    def pause(self) -> None:
        self._turnstile.acquire()
        self._gate.acquire()

    def unpause(self) -> None:
        self._gate.release()
        self._turnstile.release()

    def stop(self) -> None:
        """Make `serve` return soon. The caller joins the thread."""
        self.abandon()
        store_u64(self._scratch + 8, 1)
        write(self._kick_fd, self._scratch + 8, 8)

    def abandon(self) -> None:
        """Have the device finish or give up the batch under way. From any thread; `stop` must follow.

        A driver may put hours of work into one batch. It sees nothing of one that was given up; whoever serves the
        queue next does it again.
        """
        self._stopping = True
        self._batch.abandoned = True

    def serve(self) -> None:
        """Drain at every kick until `stop`, or until the driver breaks a rule (reported through `fail`)."""
        self._drain_all()  # buffers offered before we listened, or left by a predecessor
        while not self._stopping:
            if read(self._kick_fd, self._scratch, 8) > 0 and not self._stopping:
                self._drain_all()

    def _drain_all(self) -> None:
        try:
            self._queue.suppress_kicks()
            while not self._stopping:
                if not self.drain() and not self._queue.rearm_kicks():
                    return
        except GuestError as error:
            self._stopping = True
            self._fail(error)
        except Exception as error:
            # A bug of ours must not leave the driver waiting for ever, nor end without a word.
            log.exception("a queue has failed", extra={"queue": self._queue.queue_index})
            self._stopping = True
            self._fail(ResourceError(f"queue {self._queue.queue_index}: {type(error).__name__}: {error}"))

    def drain(self) -> int:
        """Serve one batch; return the number of chains."""
        wanted = False
        with self._turnstile:
            pass
        with self._gate:
            count = self._queue.take(self._batch)
            if count == 0:
                return 0
            self._device.process(self._queue.queue_index, self._batch, self._memory)
            if self._batch.unfinished:
                return 0
            self._queue.complete(self._batch)
            wanted = self._queue.publish()
        self.batches += 1
        self.requests += count
        if wanted:
            self.interrupts += 1
            self._interrupt()
        return count

    def _interrupt(self) -> None:
        or_u32(self._interrupt_status, USED_BUFFER)
        if self._irq_fd >= 0:
            store_u64(self._scratch + 8, 1)
            write(self._irq_fd, self._scratch + 8, 8)
        else:
            self._raise_interrupt()
