"""How a process learns that Argo has something for it: Xen's event, or looking from time to time.

Xen raises one interrupt for a whole domain and lets one process bind it. The first one gets it; the others look at
their rings by timer, which is a load from memory for each ring and no call.
"""

from __future__ import annotations

import ctypes
import errno
import os
from typing import Protocol

from xenvirtio.errors import HypervisorError
from xenvirtio.xen.capabilities import VIRQ_ARGO, EventChannels, Hypervisor

POLL_S = 0.02
"""How often a process without the event looks: 50 wake-ups a second, and 20 ms before it sees a message."""


class Wake(Protocol):
    """A descriptor that becomes readable when it is time to look."""

    def fileno(self) -> int: ...
    def clear(self) -> bool:
        """Take what made it readable away, before looking; return whether it was."""
        ...

    def close(self) -> None: ...


class EventWake:
    """Xen's own event."""

    def __init__(self, events: EventChannels) -> None:
        self._events = events
        events.bind_virq(VIRQ_ARGO)

    def fileno(self) -> int:
        return self._events.fileno()

    def clear(self) -> bool:
        ports = self._events.read()
        self._events.unmask(ports)
        return bool(ports)

    def close(self) -> None:
        self._events.close()


class _TimeSpec(ctypes.Structure):
    _fields_ = [("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long)]


class _TimerSpec(ctypes.Structure):
    _fields_ = [("interval", _TimeSpec), ("first", _TimeSpec)]


_CLOCK_MONOTONIC = 1
_libc = ctypes.CDLL(None, use_errno=True)


class TimerWake:
    """A timerfd (Python has them from 3.13 on)."""

    def __init__(self, interval_s: float = POLL_S) -> None:
        self._descriptor: int = _libc.timerfd_create(_CLOCK_MONOTONIC, os.O_NONBLOCK | os.O_CLOEXEC)
        if self._descriptor < 0:
            raise OSError(ctypes.get_errno(), "timerfd_create")
        seconds, rest = divmod(interval_s, 1)
        interval = _TimeSpec(int(seconds), max(1, int(rest * 1e9)))
        _libc.timerfd_settime(self._descriptor, 0, ctypes.byref(_TimerSpec(interval, interval)), None)

    def fileno(self) -> int:
        return self._descriptor

    def clear(self) -> bool:
        try:
            return bool(os.read(self._descriptor, 8))
        except BlockingIOError:
            return False

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def open_wake(hypervisor: Hypervisor) -> EventWake | TimerWake:
    """Take Xen's event when it is free, else a timer."""
    events = hypervisor.open_event_channels()
    try:
        return EventWake(events)
    except HypervisorError as error:
        events.close()
        if error.errno != errno.EEXIST:
            raise
        return TimerWake()
