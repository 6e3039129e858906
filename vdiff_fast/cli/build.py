"""`vdiff-fast build`."""

from __future__ import annotations

from vdiff_fast._build import build_in_place


def build() -> None:
    """Compile the native libraries into the installed package; see VDIFF_FAST_CUDA and VDIFF_FAST_CUDA_ARCHS."""
    print(build_in_place().summary())
