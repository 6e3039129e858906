"""`vdiff-fast build`."""

from __future__ import annotations

from vdiff_fast._build import build_in_place


def build() -> None:
    """Compile the native libraries for this machine, in place; VDIFF_FAST_CUDA=1 and VDIFF_FAST_ISAS=all add more."""
    print(build_in_place().summary())
