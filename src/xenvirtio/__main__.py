"""`python -m xenvirtio`."""

import sys

from xenvirtio.cli.main import main

sys.exit(main())
