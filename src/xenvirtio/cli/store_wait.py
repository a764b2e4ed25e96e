"""`xenvirtio store wait`: is XenStore there, will it come, has it come."""

from __future__ import annotations

import argparse
import json
import time

from xenvirtio.channels.xenbus_device import KernelStore
from xenvirtio.xenstore.connect import look
from xenvirtio.xenstore.open import StoreNotReadyError, open_store

EXIT_CODES = {KernelStore.READY: 0, KernelStore.LATE: 1, KernelStore.ABSENT: 3}


def run(options: argparse.Namespace) -> int:
    """Wait, say how it ended, and end with the code for that."""
    started_s = time.monotonic()
    try:
        open_store(options.timeout, options.socket).close()
        state, reason = KernelStore.READY, look(options.socket).reason
    except StoreNotReadyError as error:
        state, reason = error.state, str(error)
    word = state.name.lower()
    if options.format == "json":
        print(json.dumps({"state": word, "reason": reason, "waited_s": round(time.monotonic() - started_s, 3)}))
    else:
        print(f"{word}: {reason}")
    return EXIT_CODES[state]
