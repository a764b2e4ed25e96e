"""Shared interrupts of a guest, and the eventfds that raise them."""

from __future__ import annotations

import errno
import os
import select
import threading
from collections.abc import Callable
from dataclasses import dataclass

from xenvirtio.ids import Spi
from xenvirtio.xen.emulated.refusal import Refusal

FIRST_SPI = 32


class Interrupt:
    """One edge-triggered line: raising it while it is pending merges; taking it clears it."""

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._is_pending = False
        self._callbacks: list[Callable[[], None]] = []
        self.raised = 0
        """How often it was raised, merged edges included."""

    def on_raise(self, callback: Callable[[], None]) -> None:
        """Call `callback` at each edge, in the thread that injects it; it must not block."""
        self._callbacks.append(callback)

    def inject(self) -> None:
        with self._condition:
            self.raised += 1
            self._is_pending = True
            self._condition.notify_all()
        for callback in self._callbacks:
            callback()

    def wait(self, timeout_s: float | None = None) -> bool:
        """Wait until the interrupt is pending and take it; False when the time was up."""
        with self._condition:
            if not self._condition.wait_for(lambda: self._is_pending, timeout_s):
                return False
            self._is_pending = False
            return True


class InterruptController:
    """The lines of one guest.

    Source: xen/arch/arm/dm.c, XEN_DMOP_set_irq_level: shared interrupts only, levels 0 and 1 only, and none that
    Xen itself drives. A wrong but existing number is not noticed.
    """

    def __init__(self, spi_count: int, reserved: frozenset[Spi], count: Callable[[str], None]) -> None:
        self._lines = {Spi(irq): Interrupt() for irq in range(FIRST_SPI, FIRST_SPI + spi_count)}
        self._reserved = reserved
        self._count = count

    def line(self, irq: Spi) -> Interrupt:
        return self._lines[irq]

    def set_level(self, irq: Spi, level: int) -> None:
        """Inject at level 1; the virtual GIC ignores level 0 of an edge-triggered line."""
        if irq not in self._lines or irq in self._reserved or level not in (0, 1):
            raise Refusal(errno.EINVAL, f"interrupt {irq} level {level}")
        if level:
            self._count("interrupts")
            self._lines[irq].inject()


@dataclass(frozen=True, slots=True)
class IrqFd:
    """An eventfd of a backend bound to an interrupt; `descriptor` is the host's own duplicate."""

    descriptor: int
    controller: InterruptController
    irq: Spi


class IrqFdRouter:
    """The thread that does what the kernel does at each write to an irqfd."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._bound: dict[int, IrqFd] = {}
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._epoll.register(self._wake, select.EPOLLIN)
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="xen-irqfd", daemon=True)
        self._thread.start()

    def bind(self, irqfd: IrqFd) -> None:
        with self._lock:
            self._bound[irqfd.descriptor] = irqfd
            self._epoll.register(irqfd.descriptor, select.EPOLLIN)

    def release(self, irqfd: IrqFd) -> None:
        with self._lock:
            if self._bound.pop(irqfd.descriptor, None) is not None:
                self._epoll.unregister(irqfd.descriptor)
                os.close(irqfd.descriptor)

    def close(self) -> None:
        os.eventfd_write(self._wake, 1)
        self._thread.join()
        for irqfd in list(self._bound.values()):
            self.release(irqfd)
        self._epoll.close()
        os.close(self._wake)

    def _run(self) -> None:
        while True:
            for descriptor, _ in self._epoll.poll():
                if descriptor == self._wake:
                    return
                self._inject(descriptor)

    def _inject(self, descriptor: int) -> None:
        with self._lock:  # `release` may have closed the descriptor since the poll
            irqfd = self._bound.get(descriptor)
            if irqfd is None:
                return
            try:
                os.eventfd_read(descriptor)
            except BlockingIOError:
                return
        irqfd.controller.set_level(irqfd.irq, 1)
