"""Measure ops and models against their peers; `vdiff-fast bench` and `pytest benchmarks` both stand on this."""
