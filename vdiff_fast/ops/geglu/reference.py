"""GEGLU(a, g) = a * GELU(g), GELU(g) = g * Phi(g), on the halves [a | g] of the last axis (Shazeer 2020, eq. 6)."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def geglu(x: Tensor) -> Tensor:
    value, gate = x.chunk(2, dim=-1)
    return value * F.gelu(gate)
