"""Public function: errors, backend choice, autograd."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from vdiff_fast import _derivatives, _dispatch
from vdiff_fast.ops._common.tokens import (
    Norm,
    Tables,
    check_norm,
    check_same_kind,
    check_tables,
    check_tokens,
    rope_constants,
)
from vdiff_fast.ops.qk_norm_rope import reference

PREDICATES = _dispatch.predicates(__package__)
_KERNELS = _dispatch.kernel_modules(__package__)


class _QkNormRope(torch.autograd.Function):
    """Saves q and k for the norm, nothing for the rotation. The weights come in the dtype of the arithmetic."""

    @staticmethod
    def forward(q: Tensor, k: Tensor, backend: str, *parameters: Any) -> tuple[Tensor, Tensor]:
        return _KERNELS[backend].forward(q, k, parameters)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        q, k, ctx.backend, *parameters, ctx.eps = inputs
        normed = parameters[0] is not None
        ctx.save_for_backward(q if normed else None, k if normed else None, *parameters)

    @staticmethod
    def backward(ctx: Any, dq: Tensor, dk: Tensor) -> tuple[Any, ...]:
        q, k, *parameters = ctx.saved_tensors
        if _derivatives.continued():
            if q is None:
                return *_turned_back(dq, dk, parameters), *[None] * 6
            found = _derivatives.gradients(partial(_formula, ctx.eps), (q, k, *parameters), (dq, dk))
            return *found[:2], None, *found[2:], None
        dq, dk, dq_weight, dk_weight = _KERNELS[ctx.backend].backward(
            _rows(dq), _rows(dk), q, k, (*parameters, ctx.eps)
        )
        dweights = (None, None) if q is None else (dq_weight, dk_weight)
        return dq, dk, None, *dweights, None, None, None


def _formula(eps: float, q: Tensor, k: Tensor, *parameters: Tensor | None) -> tuple[Tensor, Tensor]:
    """The reference of what the kernels take."""
    q_weight, k_weight, cos, sin = parameters
    norm = None if q_weight is None or k_weight is None else (q_weight, k_weight)
    tables = None if cos is None or sin is None else (cos, sin)
    return reference.qk_norm_rope(q, k, qk_norm=norm, rope=tables, eps=eps)


def _turned_back(dq: Tensor, dk: Tensor, parameters: list[Tensor | None]) -> tuple[Tensor, Tensor]:
    """The gradients where there is no norm: the rotation by the negative angles."""
    *_, cos, sin = parameters
    tables = None if cos is None or sin is None else (cos, -sin)
    return reference.qk_norm_rope(dq, dk, rope=tables)


def _rows(x: Tensor) -> Tensor:
    """x itself where rows of d lie in one piece, else one copy."""
    return x if x.stride(-1) == 1 else x.contiguous()


def _parameters(q: Tensor, qk_norm: Norm | None, rope: Tables | None, eps: float) -> tuple[Any, ...]:
    """As the kernels take them: contiguous, in the dtype of the arithmetic."""
    dtype = torch.float64 if q.dtype == torch.float64 else torch.float32
    tensors = (*(qk_norm or (None, None)), *(rope or (None, None)))
    return *(None if x is None else x.to(dtype).contiguous() for x in tensors), float(eps)


def qk_norm_rope(
    q: Tensor,
    k: Tensor,
    *,
    qk_norm: Norm | None = None,
    rope: Tables | None = None,
    eps: float = 1e-6,
    inplace: bool = False,
) -> tuple[Tensor, Tensor]:
    """q', k' = RoPE(RMSNorm(q)), RoPE(RMSNorm(k)): over the head dimension, positions along S.

    Args:
        q, k: (B, T, S, heads, d), S may differ where rope is None; d a multiple of 8 up to 128; float32, bfloat16,
            float16 (float64 on CPU); any strides with unit stride in d (else one copy).
        qk_norm: weights (d,) of q and k, differentiable; no normalisation where None.
        rope: tables cos and sin (S, d/2) that turn neighbouring pairs; no rotation where None. Constants.
        eps: added to the mean square.
        inplace: write into q and k, which needs no memory of its own; for inference, where no gradient is recorded.

    Returns:
        Two tensors of the shape and dtype of q and k, contiguous (q and k themselves with `inplace`). Moves 4 tensors
        forward, 6 backward (4 without norm); saves q and k with a norm, nothing without.

    Raises:
        TypeError: an input is not floating point, or q and k differ in dtype or device.
        ValueError: ranks, head counts, head dims, weights or tables do not fit; `inplace` where a gradient is recorded.

    Source: Zhang and Sennrich 2019, "Root Mean Square Layer Normalization", eq. 4; Su et al. 2021, "RoFormer", eq. 34.
    """
    op = "qk_norm_rope"
    for name, x in (("q", q), ("k", k)):
        check_tokens(op, name, x)
        if rope is not None:
            check_tables(op, rope, x.shape[2], x)
    check_same_kind(op, q, k=k)
    if q.shape[3:] != k.shape[3:]:
        raise ValueError(f"{op}: q has (heads, d) = {tuple(q.shape[3:])}, k has {tuple(k.shape[3:])}")
    if q.shape[:2] != k.shape[:2]:
        raise ValueError(f"{op}: q has (B, T) = {tuple(q.shape[:2])}, k has {tuple(k.shape[:2])}")
    check_norm(op, qk_norm, q)
    recorded = torch.is_grad_enabled() and any(x.requires_grad for x in (q, k, *(qk_norm or ())))
    if inplace and recorded:
        raise ValueError(f"{op}: inplace=True overwrites what the gradient needs; use torch.no_grad() or inplace=False")
    backend = _dispatch.choose(op, PREDICATES, q, constants=rope_constants(rope))
    if backend == "reference":
        results = _dispatch.call_reference(reference.qk_norm_rope, q, k, qk_norm=qk_norm, rope=rope, eps=eps)
        return (q.copy_(results[0]), k.copy_(results[1])) if inplace else results
    parameters = _parameters(q, qk_norm, rope, eps)
    if not inplace:
        return _dispatch.apply(_QkNormRope, _rows(q), _rows(k), backend, *parameters)
    dense = _rows(q), _rows(k)
    _KERNELS[backend].inplace(*dense, parameters)
    return tuple(x if x is y else x.copy_(y) for x, y in zip((q, k), dense))  # type: ignore[return-value]
