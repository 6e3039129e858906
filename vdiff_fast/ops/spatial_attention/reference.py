"""Attention over the positions of every frame (Vaswani et al. 2017, eq. 1), tokens (B, T, S, heads, d).

out[s] = sum_r softmax_r(scale * q'[s] . k'[r]) v[r], q' and k' after QK-norm and RoPE.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vdiff_fast.ops._common.normalise import softmax
from vdiff_fast.ops._common.tokens import Norm, Tables
from vdiff_fast.ops.qk_norm_rope import reference as qk


def spatial_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    qk_norm: Norm | None = None,
    rope: Tables | None = None,
    scale: float | None = None,
    eps: float = 1e-6,
) -> Tensor:
    q, k = qk.qk_norm_rope(q, k, qk_norm=qk_norm, rope=rope, eps=eps, axis=2)
    logits = torch.einsum("btshd,btrhd->bthsr", q, k) * (q.shape[-1] ** -0.5 if scale is None else scale)
    return torch.einsum("bthsr,btrhd->btshd", softmax(logits), v)


def spatial_attention_qkv(qkv: Tensor, **options: object) -> Tensor:
    """Packed (B, T, S, 3, heads, d)."""
    return spatial_attention(*qkv.unbind(3), **options)  # type: ignore[arg-type]
