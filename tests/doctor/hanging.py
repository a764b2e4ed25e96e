"""Stands in for `xenvirtio.doctor.probe`: says something, then hangs; `deaf` does not listen to SIGTERM either."""

import signal
import sys
import time

if sys.argv[1] == "deaf":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
print('{"name": "first", "error": 0, "value": ""}', flush=True)
if sys.argv[1] == "broken":
    raise RuntimeError("no such luck")
time.sleep(60)
