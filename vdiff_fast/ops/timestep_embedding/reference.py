"""Sinusoids of time, sin and cos of scale * t * max_period^(-i / (dim/2 - shift)) (Vaswani et al. 2017, 3.5)."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F


def timestep_embedding(
    t: Tensor,
    dim: int,
    *,
    max_period: float = 10000.0,
    shift: float = 1.0,
    flip_sin_to_cos: bool = False,
    scale: float = 1.0,
) -> Tensor:
    half = dim // 2
    compute = torch.float64 if t.dtype == torch.float64 else torch.float32
    exponent = torch.arange(half, dtype=compute, device=t.device) * (-math.log(max_period) / (half - shift))
    angle = scale * t.to(compute)[:, None] * exponent.exp()
    halves = [angle.cos(), angle.sin()] if flip_sin_to_cos else [angle.sin(), angle.cos()]
    embedding = F.pad(torch.cat(halves, dim=1), (0, dim % 2))
    return embedding.to(t.dtype) if t.is_floating_point() else embedding
