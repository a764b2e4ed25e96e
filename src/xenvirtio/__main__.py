"""`python -m xenvirtio`."""

import os
import sys

from xenvirtio.cli.main import main

if "XENVIRTIO_PARENT" in os.environ:  # a child of `xenvirtio control`
    from xenvirtio.control.lifeline import end_with_parent

    if not end_with_parent(os.environ):
        sys.exit(1)

sys.exit(main())
