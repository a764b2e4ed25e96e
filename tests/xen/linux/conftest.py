from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture
def measure(tmp_path: Path) -> Callable[[str, list[str]], list[int]]:
    """Compiles `printf` of C expressions after a preamble of includes, and returns the values."""

    def run(preamble: str, expressions: list[str]) -> list[int]:
        compiler = shutil.which("cc") or shutil.which("gcc")
        if compiler is None:
            pytest.skip("no C compiler")
        body = "".join(f'printf("%lu\\n", (unsigned long)({expression}));' for expression in expressions)
        source = tmp_path / "measure.c"
        source.write_text(
            f"#include <stdio.h>\n#include <stddef.h>\n{preamble}\nint main(void) {{ {body} return 0; }}\n"
        )
        program = tmp_path / "measure"
        build = subprocess.run(
            [compiler, "-I", str(tmp_path), "-o", str(program), str(source)], capture_output=True, text=True
        )
        if "No such file or directory" in build.stderr:
            pytest.skip("headers are missing: " + build.stderr.splitlines()[0])
        assert build.returncode == 0, build.stderr
        output = subprocess.run([program], capture_output=True, text=True, check=True).stdout
        return [int(word) for word in output.split()]

    return run
