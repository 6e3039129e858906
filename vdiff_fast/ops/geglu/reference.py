"""GEGLU(a, g) = a * GELU(g), GELU(g) = g * Phi(g), on the halves [a | g] of x + bias (Shazeer 2020, eq. 6)."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def geglu(x: Tensor, bias: Tensor | None = None) -> Tensor:
    value, gate = (x if bias is None else x + bias.to(x.dtype)).chunk(2, dim=-1)
    return value * F.gelu(gate)
