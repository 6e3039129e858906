"""`python -m vdiff_fast.cli`, for torchrun: torchrun --nproc-per-node 2 -m vdiff_fast.cli train ..."""

import sys

from vdiff_fast.cli import main

sys.exit(main())
