"""Attention over the frames of every position (Vaswani et al. 2017, eq. 1), tokens (B, T, S, heads, d).

out[t] = sum_u softmax_u(scale * q'[t] . k'[u] + bias[t, u]) v[u], q' and k' after QK-norm and RoPE. Keys that the
causal or the key mask hides have weight 0; a query that sees no key gives 0. k and v (B, L, 1, heads, d), a context
that all positions share, broadcast over S.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vdiff_fast.ops._common.normalise import softmax
from vdiff_fast.ops._common.tokens import Norm, Tables
from vdiff_fast.ops.qk_norm_rope import reference as qk


def temporal_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    bias: Tensor | None = None,
    causal: bool = False,
    mask: Tensor | None = None,
    qk_norm: Norm | None = None,
    rope: Tables | None = None,
    scale: float | None = None,
    eps: float = 1e-6,
) -> Tensor:
    frames, keys = q.shape[1], k.shape[1]
    q, k = qk.qk_norm_rope(q, k, qk_norm=qk_norm, rope=rope, eps=eps, axis=1)
    logits = torch.einsum("btshd,bushd->bshtu", q, k) * (q.shape[-1] ** -0.5 if scale is None else scale)
    if bias is not None:
        logits = logits + bias.to(logits.dtype)
    visible = torch.ones(frames, keys, dtype=torch.bool, device=q.device)
    if causal:
        visible = visible.tril()
    if mask is not None:
        visible = visible & mask[:, None, None, None, :]
    logits = logits.masked_fill(~visible, float("-inf"))
    # A row without keys would be 0/0; its logits are made finite first, so its gradient is 0 and not NaN.
    blind = ~visible.any(-1, keepdim=True)
    weights = softmax(logits.masked_fill(blind, 0.0)).masked_fill(~visible, 0.0)
    return torch.einsum("bshtu,bushd->btshd", weights, v)


def temporal_attention_qkv(qkv: Tensor, **options: object) -> Tensor:
    """Packed (B, T, S, 3, heads, d)."""
    return temporal_attention(*qkv.unbind(3), **options)  # type: ignore[arg-type]
