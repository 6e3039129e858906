"""Noise whose frames are correlated: the arguments that every op which draws noise takes (Ge et al. 2023)."""

from __future__ import annotations

import math
from collections.abc import Sequence

# frames (0: independent elements), the weights of what they share and of their own, progressive.
FrameArguments = tuple[int, float, float, bool]
INDEPENDENT: FrameArguments = (0, 0.0, 1.0, False)


def frame_arguments(shape: Sequence[int], correlation: float, kind: str) -> FrameArguments:
    """Weights of unit variance; correlation is that of two frames (mixed) or of neighbours (progressive)."""
    if not correlation:
        return INDEPENDENT
    if kind == "mixed":
        return shape[2], math.sqrt(correlation), math.sqrt(1 - correlation), False
    return shape[2], correlation, math.sqrt(1 - correlation * correlation), True


def checked_frames(op: str, shape: Sequence[int], correlation: float, kind: str) -> FrameArguments:
    """What kernels take of frame_correlation and correlation_kind; every op that draws noise raises the same errors."""
    if kind not in ("mixed", "progressive"):
        raise ValueError(f"{op}: correlation_kind must be mixed or progressive, got {kind!r}")
    if not 0 <= correlation <= 1:
        raise ValueError(f"{op}: frame_correlation must be within [0, 1], got {correlation}")
    if correlation and len(shape) != 5:
        raise ValueError(f"{op}: frame_correlation needs a video (B, C, T, H, W), got shape {tuple(shape)}")
    return frame_arguments(shape, correlation, kind)
