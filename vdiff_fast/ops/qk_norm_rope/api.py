"""Public function: errors and backend choice."""

from __future__ import annotations

from torch import Tensor

from vdiff_fast import _dispatch
from vdiff_fast.ops.qk_norm_rope import reference
from vdiff_fast.ops.qk_norm_rope.checks import check_norm, check_same_kind, check_tables, check_tokens
from vdiff_fast.ops.qk_norm_rope.reference import Norm, Tables

PREDICATES: dict[str, _dispatch.Predicate] = {"reference": _dispatch.why_not_reference}


def qk_norm_rope(
    q: Tensor, k: Tensor, *, qk_norm: Norm | None = None, rope: Tables | None = None, eps: float = 1e-6
) -> tuple[Tensor, Tensor]:
    """q', k' = RoPE(RMSNorm(q)), RoPE(RMSNorm(k)): over the head dimension, positions along S.

    Args:
        q, k: (B, T, S, heads, d), S may differ where rope is None; d a multiple of 8 up to 128; float32, bfloat16,
            float16 (float64 on CPU); any strides with unit stride in d.
        qk_norm: weights (d,) of q and k; no normalisation where None.
        rope: tables cos and sin (S, d/2) that turn neighbouring pairs; no rotation where None. Constants.
        eps: added to the mean square.

    Returns:
        Two tensors of the shape and dtype of q and k. Moves 4 tensors forward, 6 backward; saves q and k.

    Raises:
        TypeError: an input is not floating point, or q and k differ in dtype or device.
        ValueError: ranks, head counts, head dims, weights or tables do not fit.

    Source: Zhang and Sennrich 2019, "Root Mean Square Layer Normalization", eq. 4; Su et al. 2021, "RoFormer", eq. 34.
    """
    op = "qk_norm_rope"
    for name, x in (("q", q), ("k", k)):
        check_tokens(op, name, x)
        if rope is not None:
            check_tables(op, rope, x.shape[2], x.shape[-1])
    check_same_kind(op, q, k=k)
    if q.shape[3:] != k.shape[3:]:
        raise ValueError(f"{op}: q has (heads, d) = {tuple(q.shape[3:])}, k has {tuple(k.shape[3:])}")
    check_norm(op, qk_norm, q.shape[-1])
    _dispatch.choose(op, PREDICATES, q)
    return _dispatch.call_reference(reference.qk_norm_rope, q, k, qk_norm=qk_norm, rope=rope, eps=eps)
