"""y = W2 SiLU(W1 e(t) + b1) + b2 with the sinusoids e(t) of timestep_embedding (Ho et al. 2020, appendix B)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from vdiff_fast.ops.timestep_embedding import reference as embedding


def timestep_mlp(
    t: Tensor,
    w1: Tensor,
    b1: Tensor | None,
    w2: Tensor,
    b2: Tensor | None,
    *,
    max_period: float = 10000.0,
    shift: float = 1.0,
    flip_sin_to_cos: bool = False,
    scale: float = 1.0,
) -> Tensor:
    wide = t.to(torch.float64 if w1.dtype == torch.float64 else torch.float32)
    sinusoids = embedding.timestep_embedding(
        wide, w1.shape[1], max_period=max_period, shift=shift, flip_sin_to_cos=flip_sin_to_cos, scale=scale
    )
    return F.linear(F.silu(F.linear(sinusoids.to(w1.dtype), w1, b1)), w2, b2)
