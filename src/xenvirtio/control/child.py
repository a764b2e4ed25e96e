"""`python -m xenvirtio.control.child PARENT COMMAND...`: the `xenvirtio` command as a child that ends with its parent.

A control process that is killed takes its store and its backend with it (SIGTERM: both are made to be replaced), so
that a successor finds their sockets and state directories free.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1
"""Source: Linux include/uapi/linux/prctl.h."""


def end_with_parent(parent: int) -> bool:
    """Have the kernel send SIGTERM when `parent` ends; False when it has ended already."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    return os.getppid() == parent


if __name__ == "__main__":
    if not end_with_parent(int(sys.argv[1])):
        sys.exit(1)
    from xenvirtio.cli.main import main

    sys.exit(main(sys.argv[2:]))
