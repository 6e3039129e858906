"""Self-attention and cross-attention on tokens (B, T, S, D) that were normed and modulated before."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from vdiff_fast import ops
from vdiff_fast.nn.context import Context, as_context, attend_to_context
from vdiff_fast.nn.modulation import Modulated, modulated_linear
from vdiff_fast.nn.qkv_linear import project_qkv
from vdiff_fast.nn.rotary import Tables

Axis = Literal["space", "time", "joint"]


class TokenAttention(nn.Module):
    """y = proj(attention(qkv(x))) along one axis of tokens (B, T, S, D): positions, frames, or both.

    Other than `TemporalAttention` and `SpatialAttention` it takes tokens that were normed before, and adds no residual.

    Args:
        width, heads: D, and heads of D / heads each (a multiple of 8).
        axis: "space" attends over the positions of a frame, "time" over the frames of a position, "joint" over all
            T * S tokens.
        qk_norm: RMS norm of queries and keys.

    Shape: a `Modulated` of (B, T, S, D), and tables of the rotary embedding for the axis or None -> (B, T, S, D).

    Source: Vaswani et al. 2017, eq. 1; factorised: Ma et al. 2024, "Latte", section 3.1.
    """

    def __init__(self, width: int, heads: int, axis: Axis, *, qk_norm: bool = False) -> None:
        super().__init__()
        self.heads, self.head_dim, self.axis = heads, width // heads, axis
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.q_norm = nn.Parameter(torch.ones(self.head_dim)) if qk_norm else None
        self.k_norm = nn.Parameter(torch.ones(self.head_dim)) if qk_norm else None

    def forward(self, source: Modulated, rope: Tables | None = None) -> Tensor:
        norm = None if self.q_norm is None or self.k_norm is None else (self.q_norm, self.k_norm)
        if self.axis == "time":
            qkv = modulated_linear(source, self.qkv)
            qkv = qkv.unflatten(-1, (3, self.heads, self.head_dim))
            out = ops.temporal_attention_qkv(qkv, qk_norm=norm, rope=rope, eps=1e-6)
            return self.proj(out.flatten(-2))
        q, k, v = project_qkv(source, self.qkv, self.heads)
        if self.axis == "joint":
            q, k, v = (part.flatten(1, 2).unsqueeze(1) for part in (q, k, v))
        out = ops.spatial_attention(q, k, v, qk_norm=norm, rope=rope, eps=1e-6)
        return self.proj(out.flatten(-2).reshape(source.y.shape))

    def extra_repr(self) -> str:
        return f"heads={self.heads}, axis={self.axis}"


class TokenCrossAttention(nn.Module):
    """y = proj(attention(q(x), kv(context))): every token attends over the context.

    Args:
        width, heads: as in `TokenAttention`.
        qk_norm: RMS norm of queries and keys.

    Shape: x (B, T, S, D), context (B, L, D), or a `Context` with a mask -> (B, T, S, D). With keys_values,
        `kv(context)` made before, (B, L, 2 D), the context's tokens are not read.

    Source: Chen et al. 2024, "PixArt-alpha", section 2.3.
    """

    def __init__(self, width: int, heads: int, *, qk_norm: bool = False) -> None:
        super().__init__()
        self.heads, self.head_dim = heads, width // heads
        self.q = nn.Linear(width, width)
        self.kv = nn.Linear(width, 2 * width)
        self.proj = nn.Linear(width, width)
        self.q_norm = nn.Parameter(torch.ones(self.head_dim)) if qk_norm else None
        self.k_norm = nn.Parameter(torch.ones(self.head_dim)) if qk_norm else None

    def forward(self, x: Tensor, context: Tensor | Context | None, keys_values: Tensor | None = None) -> Tensor:
        tokens, mask = as_context(context)
        if keys_values is None:
            keys_values = self.kv(tokens)
        norm = None if self.q_norm is None or self.k_norm is None else (self.q_norm, self.k_norm)
        q = self.q(x).unflatten(-1, (self.heads, self.head_dim))
        return self.proj(attend_to_context(q, keys_values, qk_norm=norm, mask=mask).flatten(-2))

    def extra_repr(self) -> str:
        return f"heads={self.heads}"
