"""Strides of rows in a form that lets Triton see how they are aligned."""

from __future__ import annotations

import math
from collections.abc import Iterable

from torch import Tensor

# Elements of 16 bytes in 16 bits: no access is wider.
_WIDEST = 8


def row_strides(tensors: Iterable[Tensor]) -> tuple[int, list[int]]:
    """A unit and, in this unit, the strides of all axes of every tensor but the last axis.

    Triton knows of an integer argument only whether 16 divides it. Heads of 40 or 72 channels have strides of 8 times
    an odd number, and the compiler has to take them for odd: each element is then loaded by itself. A kernel that
    multiplies by a constant unit of 8 has the alignment in its text.

    Returns:
        The largest of 8, 4, 2 and 1 that divides all strides; the strides divided by it, tensor by tensor.
    """
    strides = [n for x in tensors for n in x.stride()[:-1]]
    unit = math.gcd(_WIDEST, *strides)
    return unit, [n // unit for n in strides]
