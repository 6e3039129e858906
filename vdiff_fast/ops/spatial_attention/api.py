"""Public functions: errors and backend choice."""

from __future__ import annotations

from functools import partial

from torch import Tensor

from vdiff_fast import _derivatives, _dispatch
from vdiff_fast.ops._common.tokens import (
    Norm,
    Tables,
    check_norm,
    check_packed,
    check_same_kind,
    check_tables,
    check_tokens,
)
from vdiff_fast.ops.qk_norm_rope import qk_norm_rope
from vdiff_fast.ops.spatial_attention import reference, sdpa

PREDICATES = _dispatch.predicates(__package__, sdpa=sdpa.why_not_sdpa, xformers=sdpa.why_not_xformers)


def _attend(
    q: Tensor, k: Tensor, v: Tensor, qk_norm: Norm | None, rope: Tables | None, scale: float | None, eps: float
) -> Tensor:
    backend = _dispatch.choose("spatial_attention", PREDICATES, q)
    if backend == "reference" or 0 in q.shape or 0 in k.shape:
        options = {"qk_norm": qk_norm, "rope": rope, "scale": scale, "eps": eps}
        return _dispatch.call_reference(reference.spatial_attention, q, k, v, **options)
    if qk_norm is not None or rope is not None:
        q, k = qk_norm_rope(q, k, qk_norm=qk_norm, rope=rope, eps=eps)
    factor = q.shape[-1] ** -0.5 if scale is None else scale
    out = _dispatch.call_reference(sdpa.xformers if backend == "xformers" else sdpa.sdpa, q, k, v, factor)
    return _derivatives.rerouted(out, partial(reference.spatial_attention, scale=factor), q, k, v)


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
    """out = softmax(scale * q' k'^T) v over the S positions of every frame and head; q', k' = RoPE(RMSNorm(.)).

    Args:
        q: (B, T, S, heads, d), any strides with unit stride in d; d a multiple of 8 up to 128; float32, bfloat16,
            float16 (float64 on CPU).
        k, v: (B, T, R, heads, d); R = S in self-attention, the length of the context in cross-attention.
        qk_norm: RMS-norm weights (d,) of q and k; differentiable.
        rope: tables cos and sin (S, d/2), R = S. Constants.
        scale: of the logits; d ** -0.5 where None.
        eps: of the RMS norm.

    Returns:
        (B, T, S, heads, d), contiguous, dtype of q. Strided views go into the library: no layout copy.

    Raises:
        TypeError: q, k, v are not floating point or differ in dtype or device.
        ValueError: shapes do not fit: batch, frames, heads, head dim, weights, tables.

    Source: Vaswani et al. 2017, "Attention Is All You Need", eq. 1.
    """
    op = "spatial_attention"
    for name, x in (("q", q), ("k", k), ("v", v)):
        check_tokens(op, name, x)
    check_same_kind(op, q, k=k, v=v)
    if k.shape != v.shape:
        raise ValueError(f"{op}: k has shape {tuple(k.shape)}, v has {tuple(v.shape)}; they must be equal")
    if q.shape[3] != k.shape[3]:
        raise ValueError(f"{op}: k has {k.shape[3]} heads, q has {q.shape[3]}")
    if (*q.shape[:2], *q.shape[3:]) != (*k.shape[:2], *k.shape[3:]):
        raise ValueError(f"{op}: q {tuple(q.shape)} and k {tuple(k.shape)} may differ in their third axis alone")
    check_norm(op, qk_norm, q)
    check_tables(op, rope, q.shape[2], q)
    check_tables(op, rope, k.shape[2], q)
    return _attend(q, k, v, qk_norm, rope, scale, eps)


def spatial_attention_qkv(
    qkv: Tensor,
    *,
    qk_norm: Norm | None = None,
    rope: Tables | None = None,
    scale: float | None = None,
    eps: float = 1e-6,
) -> Tensor:
    """out = spatial_attention(q, k, v) with [q | k | v] = qkv, the output of one Linear; one packed gradient.

    Args:
        qkv: (B, T, S, 3, heads, d), any strides with unit stride in d.
        qk_norm, rope, scale, eps: as in `spatial_attention`.

    Returns:
        (B, T, S, heads, d), contiguous, dtype of qkv. The libraries give the gradients of q, k and v apart, so the
        packed one costs a copy of each; `vf.nn.qkv_linear` takes them apart and saves it.

    Raises:
        TypeError, ValueError: as `spatial_attention`, and where qkv is not packed.

    Source: as `spatial_attention`.
    """
    op = "spatial_attention"
    check_packed(op, qkv)
    check_norm(op, qk_norm, qkv)
    check_tables(op, rope, qkv.shape[2], qkv)
    q, k, v = qkv.unbind(3)
    return _attend(q, k, v, qk_norm, rope, scale, eps)
