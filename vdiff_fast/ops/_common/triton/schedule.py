"""The two coefficients of a sample as a Triton device function; see vdiff_fast/ops/_common/schedule.py."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def coefficients(t_ptr, signal_ptr, scale_ptr, steps, sample):
    """(signal, noise scale) in float32 of int64 steps or, for a flow, float32 sigmas; NaN where t is out of range."""
    t = tl.load(t_ptr + sample)
    # One return: what follows a return in a branch that is not taken is compiled all the same.
    if t_ptr.dtype.element_ty == tl.float32:
        inside = (t >= 0.0) & (t <= 1.0)
        signal, scale = 1.0 - t, t
    else:
        inside = (t >= 0) & (t < steps)
        row = tl.where(inside, t, 0)
        signal, scale = tl.load(signal_ptr + row), tl.load(scale_ptr + row)
    return tl.where(inside, signal, float("nan")), tl.where(inside, scale, float("nan"))
