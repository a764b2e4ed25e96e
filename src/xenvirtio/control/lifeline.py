"""A child that ends with its parent.

A control process that is killed takes its store and its backend with it (SIGTERM: both are made to be replaced), so
that a successor finds their sockets and state directories free. The parent says so by a variable in the child's
environment; the command line stays the one that a person would have typed.
"""

from __future__ import annotations

import ctypes
import os
import signal
from collections.abc import MutableMapping

PARENT = "XENVIRTIO_PARENT"
"""The process id of the parent to end with."""

PR_SET_PDEATHSIG = 1
"""Source: Linux include/uapi/linux/prctl.h."""


def end_with_parent(environment: MutableMapping[str, str]) -> bool:
    """Have the kernel send SIGTERM when the parent ends; False when it has ended already.

    The variable is taken out, so that it does not concern children of our own.
    """
    parent = environment.pop(PARENT)
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    return str(os.getppid()) == parent
