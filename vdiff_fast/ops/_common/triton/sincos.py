"""Sine and cosine of a float64 phase, by the polynomials of the noise."""

import triton
import triton.language as tl

from vdiff_fast import _philox

_SIN = tl.constexpr(_philox.SIN)
_COS = tl.constexpr(_philox.COS)


@triton.jit
def sincos(angle):
    """sin and cos of a float64 tensor as float32, without the local memory of the library's slow path."""
    # Adding 1.5 * 2^52 rounds to an integer.
    turns = (angle * 0.63661977236758134308 + 6755399441055744.0) - 6755399441055744.0
    x = ((angle - turns * 1.5707963267948966) - turns * 6.123233995736766e-17).to(tl.float32)
    quadrant = turns.to(tl.int64) & 3
    z = x * x
    sine = x + (x * z) * ((z * _SIN[2] + _SIN[1]) * z + _SIN[0])
    cosine = (1.0 - z * 0.5) + (z * z) * ((z * _COS[2] + _COS[1]) * z + _COS[0])
    odd = (quadrant & 1) != 0
    first = tl.where(odd, cosine, sine)
    second = tl.where(odd, sine, cosine)
    return tl.where((quadrant & 2) != 0, -first, first), tl.where(((quadrant + 1) & 2) != 0, -second, second)
