"""Measure ops and models against their peers; `vdiff-fast bench` and `pytest benchmarks` both stand on this."""

import os

# torch's profiler prints two lines every time it starts and stops; this level is its first silent one.
os.environ.setdefault("KINETO_LOG_LEVEL", "6")
