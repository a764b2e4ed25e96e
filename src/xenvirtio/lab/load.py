"""I/O load in a guest by our `blkbench` (guest/blkbench.c), in the foreground or beside other commands."""

from __future__ import annotations

import itertools
import json
from dataclasses import dataclass, fields

from xenvirtio.errors import ResourceError
from xenvirtio.lab.toolstack import Guest

_numbers = itertools.count()


@dataclass(frozen=True, slots=True)
class LoadResult:
    """What blkbench measured; its own words for its own counts."""

    requests: int
    reads: int
    writes: int
    swept: int
    seconds: float
    iops: float
    mib_per_s: float
    p50_us: int
    p99_us: int
    errors: int
    mismatches: int


def parse_result(output: str) -> LoadResult:
    """The result in blkbench's output.

    Raises:
        ResourceError: there is none; the message has the output.
    """
    for line in output.splitlines():
        if line.startswith('{"mode"'):
            values = json.loads(line)
            return LoadResult(**{field.name: values[field.name] for field in fields(LoadResult)})
    raise ResourceError(f"blkbench gave no result: {output.strip()[-2000:]}")


def run_load(guest: Guest, arguments: str, timeout_s: float = 300) -> LoadResult:
    """Run blkbench to its end.

    Raises:
        CommandError: it found an error or a mismatch.
    """
    return parse_result(guest.run(f"blkbench {arguments}", timeout_s).output)


class Load:
    """A blkbench that goes on in the guest while other things happen."""

    def __init__(self, guest: Guest, arguments: str) -> None:
        self._guest = guest
        self._path = f"/tmp/load{next(_numbers)}"
        guest.run(
            f"(blkbench {arguments} >{self._path} 2>&1 & pid=$!; echo $pid >{self._path}.pid; wait $pid; "
            f"echo $? >{self._path}.status) >/dev/null 2>&1 & until [ -s {self._path}.pid ]; do :; done"
        )

    def is_running(self) -> bool:
        return self._guest.run(f"[ -s {self._path}.status ]", check=False).status != 0

    def finish(self, timeout_s: float = 300) -> LoadResult:
        """Have it stop, read everything it wrote once more, and end without an error or a mismatch.

        Raises:
            AssertionError: it found something wrong. CommandError: it did not end in time.
        """
        self._guest.run(f"kill -TERM $(cat {self._path}.pid)", check=False)
        output = self._guest.run(
            f"until [ -s {self._path}.status ]; do sleep 0.1; done; cat {self._path} {self._path}.status", timeout_s
        ).output
        result = parse_result(output)
        status = output.split()[-1]
        assert status == "0", f"verified I/O in guest {self._guest.name} ended with {status}: {output.strip()}"
        assert result.requests > 0, f"guest {self._guest.name} did no I/O: {output.strip()}"
        return result
