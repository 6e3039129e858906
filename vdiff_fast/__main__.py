"""`python -m vdiff_fast`, the same as the command `vdiff-fast`."""

import sys

from vdiff_fast.cli import main

sys.exit(main())
