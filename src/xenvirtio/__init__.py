"""virtio backends for Xen guests, in Python."""

import os as _os

__version__ = "0.1.0"

if _os.environ.get("XENVIRTIO_ENGINE") == "interpreted":
    from xenvirtio._engine_choice import use_interpreted_engine

    use_interpreted_engine()
