"""What every test shares: the tree's own package, and how hard the property tests try.

The tests run both ways: with the compiled engine where it is built, and with XENVIRTIO_ENGINE=interpreted. The header
of each run says which it was.

XENVIRTIO_FUZZ_SECONDS=N repeats each property test of tests/fuzz, with new examples, for N seconds.
"""

from __future__ import annotations

import importlib.util
import os
import sys
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

ROOT = Path(__file__).parent.parent

if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))  # `tests.memory.guarded` and its like
if importlib.util.find_spec("xenvirtio") is None:
    sys.path.insert(0, str(ROOT / "src"))
    # for the processes that tests start
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT / "src"), os.environ.get("PYTHONPATH")]))

# No deadline: interpreted on a busy machine, one example may take a hundred times its usual time.
settings.register_profile("default", deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("default")


def pytest_report_header(config: pytest.Config) -> str:
    from xenvirtio._build import ENGINE_MODULES
    from xenvirtio._engine_choice import compiled_modules

    compiled = len(compiled_modules())
    kind = "compiled" if compiled == len(ENGINE_MODULES) else "partly compiled" if compiled else "interpreted"
    return f"xenvirtio engine: {kind} ({compiled} of {len(ENGINE_MODULES)} modules)"


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    seconds = float(os.environ.get("XENVIRTIO_FUZZ_SECONDS", 0))
    if not seconds or pyfuncitem.path.parent != ROOT / "tests" / "fuzz":
        return None
    if not getattr(pyfuncitem.obj, "is_hypothesis_test", False):
        return None
    arguments = {name: pyfuncitem.funcargs[name] for name in pyfuncitem._fixtureinfo.argnames}
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        pyfuncitem.obj(**arguments)
    return True
