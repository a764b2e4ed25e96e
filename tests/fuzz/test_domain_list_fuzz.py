"""Whatever the domain list says ends in domains or a HypervisorError, and ends: it is read with a layout of our own."""

from __future__ import annotations

import ctypes
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.xen.linux.test_locked_calls import FakeXen
from xenvirtio.errors import HypervisorError
from xenvirtio.xen.linux import LinuxHypervisor, hypercall, node, privcmd


class LyingXen(FakeXen):
    """Right while it is opened; then it answers lists with these bytes and counts."""

    answers: list[tuple[bytes, int]]
    is_open = False

    def _sysctl(self, argument: int, unused: int) -> int:
        if not self.is_open:
            return super()._sysctl(argument, unused)
        data, count = self.answers.pop(0) if self.answers else (b"", 0)
        buffer = ctypes.c_uint64.from_address(argument + 16).value
        ctypes.memmove(buffer, data, min(len(data), 128 * self.record_bytes))
        ctypes.c_uint32.from_address(argument + 24).value = count
        return 0


ANSWERS = st.lists(
    st.tuples(st.binary(max_size=600).map(lambda seed: (seed or b"\0") * 40), st.integers(0, (1 << 32) - 1)), max_size=4
)


@given(answers=ANSWERS)
def test_any_answer_ends(tmp_path_factory: pytest.TempPathFactory, answers: list[tuple[bytes, int]]) -> None:
    directory: Path = tmp_path_factory.mktemp("xen")
    for name in ("privcmd", "hypercall"):
        (directory / name).touch()
    xen = LyingXen()
    with pytest.MonkeyPatch.context() as patch:
        for module in (hypercall, node, privcmd):
            patch.setattr(module, "libc", xen)
        control = LinuxHypervisor(str(directory)).open_domain_control()
        xen.is_open, xen.answers = True, answers
        try:
            infos = control.domains()
        except HypervisorError:
            infos = []
        finally:
            control.close()
    assert all(0 <= info.domid < 1 << 16 and len(info.handle) == 16 for info in infos)
