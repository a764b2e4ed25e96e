"""Stands in for the `cython` module where Cython is not installed: the engine then runs interpreted.

Engine modules are plain Python with a `.pxd` beside them that holds the C types, so all they ever ask of
`cython` at run time is whether they were compiled.
"""

compiled = False
