"""RMS normalisation over the head dimension and rotary position embedding, in plain torch.

RMSNorm(x) = w * x / sqrt(mean(x^2) + eps)                                  (Zhang and Sennrich 2019, eq. 4)
RoPE: (x_2i, x_2i+1) -> (x_2i cos - x_2i+1 sin, x_2i sin + x_2i+1 cos)      (Su et al. 2021, eq. 34)
"""

from __future__ import annotations

import torch
from torch import Tensor

from vdiff_fast.ops._common.tokens import Norm, Tables


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Over the last axis, weight (d,)."""
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * weight.to(x.dtype)


def rotate(x: Tensor, tables: Tables, axis: int) -> Tensor:
    """x (B, T, S, heads, d) turned by cos and sin (positions, d/2), positions along `axis` (1: T, 2: S)."""
    shape = [1] * x.dim()
    shape[axis], shape[-1] = x.shape[axis], x.shape[-1] // 2
    cos, sin = (table.to(x.dtype).reshape(shape) for table in tables)
    even, odd = x.unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1).flatten(-2)


def qk_norm_rope(
    q: Tensor,
    k: Tensor,
    *,
    qk_norm: Norm | None = None,
    rope: Tables | None = None,
    eps: float = 1e-6,
    axis: int = 2,
) -> tuple[Tensor, Tensor]:
    if qk_norm is not None:
        q, k = rms_norm(q, qk_norm[0], eps), rms_norm(k, qk_norm[1], eps)
    if rope is not None:
        q, k = rotate(q, rope, axis), rotate(k, rope, axis)
    return q, k
