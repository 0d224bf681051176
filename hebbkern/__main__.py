"""python -m hebbkern: the command line."""

import sys

from hebbkern.cli import main

sys.exit(main())
