"""Builds the optional compiled engine; everything else stands in pyproject.toml.

Without a C compiler or Cython the package installs all the same and runs interpreted.
"""

import importlib.util
import os
from pathlib import Path

from setuptools import Extension, setup

_spec = importlib.util.spec_from_file_location("_build", Path(__file__).parent / "src/xenvirtio/_build.py")
_build = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_build)


def engine():
    if os.environ.get("XENVIRTIO_BUILD") == "pure":
        return []
    try:
        from Cython.Build import cythonize
    except ImportError:
        return []
    extensions = [
        Extension(name, ["src/" + name.replace(".", "/") + ".py"], optional=True, extra_compile_args=["-O2", "-g0"])
        for name in _build.ENGINE_MODULES
    ]
    return cythonize(
        extensions,
        build_dir="build/cython",
        include_path=["src"],
        nthreads=os.cpu_count() or 1,
        compiler_directives=_build.COMPILER_DIRECTIVES,
    )


setup(ext_modules=engine(), options={"build_ext": {"parallel": os.cpu_count() or 1}})
