"""Attention of every token to a short context that all of them share.

On the CPU by a kernel of its own: keys and values stay in the cache, and the gradients are summed over the tokens
inside it. On a GPU as attention over frames: a query does not see the other queries, so any n of the T * S tokens may
stand for the n frames of one position. With n at least L, and a divisor of T * S, that is a view of q; keys and values
are those of every position, a view of stride 0, padded to n with keys that nobody sees.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from vdiff_fast import _derivatives, _dispatch
from vdiff_fast.ops._common.tokens import Norm
from vdiff_fast.ops.qk_norm_rope.reference import rms_norm
from vdiff_fast.ops.temporal_attention import native, reference

# Fewer queries than the smallest vector of a kernel leave its lanes empty.
MIN_QUERIES = 8


class _ContextAttention(torch.autograd.Function):
    """q (B, N, heads, d), k and v (B, L, heads, d); the norm weight comes and its gradient leaves in float32."""

    @staticmethod
    def forward(
        q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, q_weight: Tensor | None, scale: float, eps: float
    ) -> Tensor:
        return native.context_forward(q, k, v, mask, q_weight, scale, eps)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        *tensors, ctx.scale, ctx.eps = inputs
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx: Any, dout: Tensor) -> tuple[Any, ...]:
        q, k, v, mask, q_weight = ctx.saved_tensors
        if _derivatives.continued():
            found = _derivatives.gradients(partial(_formula, ctx.scale, ctx.eps), (q, k, v, mask, q_weight), dout)
            return *found, None, None
        dq, dk, dv, dq_weight = native.context_backward(rows(dout), q, k, v, mask, q_weight, ctx.scale, ctx.eps)
        return dq, dk, dv, None, None if q_weight is None else dq_weight, None, None


def _formula(
    scale: float, eps: float, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, q_weight: Tensor | None
) -> Tensor:
    """The reference of what the kernel takes: keys are normed before."""
    q = q if q_weight is None else rms_norm(q, q_weight, eps)
    out = reference.temporal_attention(q.unsqueeze(2), k.unsqueeze(2), v.unsqueeze(2), mask=mask, scale=scale)
    return out.squeeze(2)


def rows(x: Tensor) -> Tensor:
    """x itself where rows of d lie in one piece, else one copy."""
    return x if x.stride(-1) == 1 else x.contiguous()


def on_cpu(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, qk_norm: Norm | None, scale: float, eps: float
) -> Tensor:
    """q (B, T, S, heads, d), k and v (B, L, 1, heads, d), mask (B, L) -> the shape of q."""
    q_weight = None
    if qk_norm is not None:
        dtype = torch.float64 if q.dtype == torch.float64 else torch.float32
        q_weight = qk_norm[0].to(dtype).contiguous()
        k = rms_norm(k.to(dtype), qk_norm[1].to(dtype), eps).to(q.dtype)
    tokens, keys, values = (rows(x) for x in (q.flatten(1, 2), k.squeeze(2), v.squeeze(2)))
    visible = None if mask is None else mask.contiguous()
    out = _dispatch.apply(_ContextAttention, tokens, keys, values, visible, q_weight, scale, eps)
    return out.unflatten(1, q.shape[1:3])


def group_size(q: Tensor, keys: int, *, limit: int) -> int:
    """The smallest n up to `limit` that holds the keys and divides the tokens of q (B, T, S, heads, d); 0: none."""
    tokens = q.shape[1] * q.shape[2]
    sizes = range(max(keys, MIN_QUERIES), limit + 1)
    return next((n for n in sizes if tokens % n == 0), 0) if tokens else 0


def group(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, n: int) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """q (B, n, T*S/n, heads, d), k and v of the same shape, mask (B, n).

    Args:
        q: (B, T, S, heads, d).
        k, v: (B, L, 1, heads, d).
        mask: (B, L) or None.
        n: a `group_size`.
    """
    keys, positions = k.shape[1], q.shape[1] * q.shape[2] // n
    if n > keys:
        visible = torch.ones(q.shape[0], keys, dtype=torch.bool, device=q.device) if mask is None else mask
        mask = F.pad(visible, (0, n - keys))
        k, v = (F.pad(x, (0, 0, 0, 0, 0, 0, 0, n - keys)) for x in (k, v))
    k, v = (x.expand(-1, -1, positions, -1, -1) for x in (k, v))
    return q.flatten(1, 2).unflatten(1, (n, positions)), k, v, mask


def ungroup(out: Tensor, q: Tensor) -> Tensor:
    """The kernel's answer in the shape of q."""
    return out.flatten(1, 2).unflatten(1, q.shape[1:3])
