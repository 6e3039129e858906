"""Public functions: errors, backend choice, autograd."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from vdiff_fast import _derivatives, _dispatch
from vdiff_fast.ops._common.tokens import (
    Norm,
    Tables,
    check_device,
    check_norm,
    check_packed,
    check_same_kind,
    check_tables,
    check_tokens,
    rope_constants,
)
from vdiff_fast.ops.qk_norm_rope import rope_tables
from vdiff_fast.ops.temporal_attention import cross, reference
from vdiff_fast.ops.temporal_attention.config import holds
from vdiff_fast.ops.temporal_attention.cross import rows

MAX_FRAMES = 64


def _limited(predicate: _dispatch.Predicate) -> _dispatch.Predicate:
    def why_not(x: Tensor, *facts: Any) -> str | None:
        if x.shape[1] > MAX_FRAMES:
            return f"{x.shape[1]} frames > {MAX_FRAMES}, what the kernel holds"
        return predicate(x, *facts)

    return why_not


def _why_not_triton(x: Tensor, fused: bool = False, *facts: Any) -> str | None:
    frames, d = x.shape[1], x.shape[-1]
    if frames <= MAX_FRAMES and not holds(frames, d, x.element_size(), fused):
        with_options = " with norm or rotation" if fused else ""
        return f"{frames} frames of d = {d} in {x.dtype}{with_options} do not fit the registers of a program"
    return _dispatch.why_not_triton(x)


def _why_not_cuda(x: Tensor, *facts: Any) -> str | None:
    if x.dtype not in (torch.bfloat16, torch.float16):
        return f"{x.dtype} is not one of bfloat16, float16, which its tensor-core products take"
    return _dispatch.why_not_cuda(x)


def _why_not_cpu(x: Tensor, fused: bool = False, context: int = 0) -> str | None:
    if context > MAX_FRAMES:
        return f"a context of {context} tokens > {MAX_FRAMES}, what the kernel holds"
    return _dispatch.why_not_cpu(x) if context else _limited(_dispatch.why_not_cpu)(x)


PREDICATES = _dispatch.predicates(
    __package__, cpu=_why_not_cpu, triton=_limited(_why_not_triton), cuda=_limited(_why_not_cuda)
)
_KERNELS = _dispatch.kernel_modules(__package__)


class _Attention(torch.autograd.Function):
    """q, k, v apart. The parameters come in the dtype of the arithmetic; their gradients leave in it."""

    @staticmethod
    def forward(q: Tensor, k: Tensor, v: Tensor, backend: str, *options: Any) -> Tensor:
        return _KERNELS[backend].forward(q, k, v, options)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        q, k, v, ctx.backend, *tensors, ctx.causal, ctx.scale, ctx.eps = inputs
        ctx.save_for_backward(q, k, v, *tensors)

    @staticmethod
    def backward(ctx: Any, dout: Tensor) -> tuple[Any, ...]:
        q, k, v, *tensors = ctx.saved_tensors
        if _derivatives.continued():
            formula = partial(_formula, ctx.causal, ctx.scale, ctx.eps)
            found = _derivatives.gradients(formula, (q, k, v, *tensors), dout)
            return *found[:3], None, *found[3:], None, None, None
        options = (*tensors, ctx.causal, ctx.scale, ctx.eps)
        dq, dk, dv, *parameters = _KERNELS[ctx.backend].backward(rows(dout), q, k, v, options)
        return dq, dk, dv, None, *_parameter_gradients(tensors, parameters)


class _PackedAttention(torch.autograd.Function):
    """One tensor in, one gradient out."""

    @staticmethod
    def forward(qkv: Tensor, backend: str, *options: Any) -> Tensor:
        return _KERNELS[backend].forward(*qkv.unbind(3), options)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        qkv, ctx.backend, *tensors, ctx.causal, ctx.scale, ctx.eps = inputs
        ctx.save_for_backward(qkv, *tensors)

    @staticmethod
    def backward(ctx: Any, dout: Tensor) -> tuple[Any, ...]:
        qkv, *tensors = ctx.saved_tensors
        if _derivatives.continued():
            formula = partial(_packed_formula, ctx.causal, ctx.scale, ctx.eps)
            found = _derivatives.gradients(formula, (qkv, *tensors), dout)
            return found[0], None, *found[1:], None, None, None
        options = (*tensors, ctx.causal, ctx.scale, ctx.eps)
        dqkv, *parameters = _KERNELS[ctx.backend].backward_packed(rows(dout), qkv, options)
        return dqkv, None, *_parameter_gradients(tensors, parameters)


def _formula(
    causal: bool, scale: float, eps: float, q: Tensor, k: Tensor, v: Tensor, *tensors: Tensor | None
) -> Tensor:
    """The reference of what the kernels take."""
    bias, mask, q_weight, k_weight, cos, sin = tensors
    norm = None if q_weight is None or k_weight is None else (q_weight, k_weight)
    tables = None if cos is None or sin is None else (cos, sin)
    return reference.temporal_attention(
        q, k, v, bias=bias, causal=causal, mask=mask, qk_norm=norm, rope=tables, scale=scale, eps=eps
    )


def _packed_formula(causal: bool, scale: float, eps: float, qkv: Tensor, *tensors: Tensor | None) -> Tensor:
    return _formula(causal, scale, eps, *qkv.unbind(3), *tensors)


def _parameter_gradients(tensors: list[Tensor | None], gradients: list[Tensor]) -> tuple[Any, ...]:
    """In the order of the options: bias, mask, q_weight, k_weight, cos, sin, causal, scale, eps."""
    bias, _, q_weight, k_weight, _, _ = tensors
    dbias, dq_weight, dk_weight = gradients
    return (
        None if bias is None else dbias,
        None,
        None if q_weight is None else dq_weight,
        None if k_weight is None else dk_weight,
        *[None] * 5,
    )


def _kernel_options(
    q: Tensor,
    bias: Tensor | None,
    causal: bool,
    mask: Tensor | None,
    qk_norm: Norm | None,
    rope: Tables | None,
    scale: float | None,
    eps: float,
) -> tuple[Any, ...]:
    """The options as the kernels take them: parameters contiguous and in the dtype of the arithmetic."""
    dtype = torch.float64 if q.dtype == torch.float64 else torch.float32

    def ready(x: Tensor | None) -> Tensor | None:
        return None if x is None else x.to(dtype).contiguous()

    q_weight, k_weight = qk_norm or (None, None)
    cos, sin = rope or (None, None)
    visible = None if mask is None else mask.contiguous()
    factor = q.shape[-1] ** -0.5 if scale is None else float(scale)
    # Under torch.compile float() realizes eps here, and not inside the Function, where a second call would not find it.
    return ready(bias), visible, ready(q_weight), ready(k_weight), ready(cos), ready(sin), causal, factor, float(eps)


def _check_options(
    op: str, q: Tensor, bias: Tensor | None, mask: Tensor | None, qk_norm: Norm | None, rope: Tables | None
) -> None:
    batch, frames, _, heads, _ = q.shape
    if bias is not None and bias.shape != (heads, frames, frames):
        if bias.dim() == 3 and bias.shape[0] == heads and frames > bias.shape[-1]:
            raise ValueError(f"{op}: {frames} frames > {bias.shape[-1]} of the bias table; use RoPE or a larger table")
        raise ValueError(
            f"{op}: bias must be (heads, T, T) = ({heads}, {frames}, {frames}), got {tuple(bias.shape)}; slice it"
        )
    if mask is not None:
        _check_mask(op, mask, (batch, frames), "(B, T)", q)
    if bias is not None:
        check_device(op, "bias", bias, q)
    check_norm(op, qk_norm, q)
    check_tables(op, rope, frames, q)


def _cross_attention(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, qk_norm: Norm | None, scale: float | None, eps: float
) -> Tensor:
    """k and v (B, L, 1, heads, d) for every token of q; their gradients are summed over tokens in a fixed order."""
    keys = k.shape[1]
    n = cross.group_size(q, keys, limit=MAX_FRAMES)
    # Where no group of queries fits, the shape itself tells the predicates: more frames than a kernel holds.
    probe = q.flatten(1, 2).unflatten(1, (n, -1)) if n else q.flatten(1, 2).unsqueeze(2)
    backend = _dispatch.choose("temporal_attention", PREDICATES, probe, qk_norm is not None, keys)
    if backend == "cpu" and 0 not in q.shape and keys:
        return cross.on_cpu(q, k, v, mask, qk_norm, q.shape[-1] ** -0.5 if scale is None else float(scale), float(eps))
    if backend == "reference" or n == 0 or 0 in q.shape or not keys:
        options = {"mask": mask, "qk_norm": qk_norm, "scale": scale, "eps": eps}
        return _dispatch.call_reference(reference.temporal_attention, q, k, v, **options)
    queries, expanded, others, visible = cross.group(q, k, v, mask, n)
    values = _kernel_options(queries, None, False, visible, qk_norm, None, scale, eps)
    tensors = rows(queries), rows(expanded), rows(others)
    return cross.ungroup(_dispatch.apply(_Attention, *tensors, backend, *values), q)


def _check_context(
    op: str, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, qk_norm: Norm | None, frame_options: bool
) -> None:
    if k.shape != v.shape or (k.shape[0], *k.shape[3:]) != (q.shape[0], *q.shape[3:]):
        raise ValueError(
            f"{op}: k {tuple(k.shape)} and v {tuple(v.shape)} of a context must be (B, L, 1, heads, d) with the batch, "
            f"heads and d of q {tuple(q.shape)}"
        )
    if frame_options:
        raise ValueError(f"{op}: bias, causal and rope belong to frames; a context of {k.shape[1]} tokens takes a mask")
    if mask is not None:
        _check_mask(op, mask, (k.shape[0], k.shape[1]), "(B, L)", q)
    check_norm(op, qk_norm, q)


def _check_mask(op: str, mask: Tensor, shape: tuple[int, int], names: str, q: Tensor) -> None:
    if mask.dtype != torch.bool:
        raise TypeError(f"{op}: mask must be bool (True: the key is seen), got {mask.dtype}; use mask.bool()")
    if mask.shape != shape:
        raise ValueError(f"{op}: mask must be {names} = ({shape[0]}, {shape[1]}), got {tuple(mask.shape)}")
    check_device(op, "mask", mask, q)


def _tables(q: Tensor, rope: float | Tables | None) -> Tables | None:
    if isinstance(rope, (int, float)):
        return rope_tables(q.shape[1], q.shape[-1], base=float(rope), device=q.device)
    return rope


def temporal_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    bias: Tensor | None = None,
    causal: bool = False,
    mask: Tensor | None = None,
    qk_norm: Norm | None = None,
    rope: float | Tables | None = None,
    scale: float | None = None,
    eps: float = 1e-6,
) -> Tensor:
    """out = softmax(scale * q' k'^T + bias) v over the T frames of every position and head; q', k' = RoPE(RMSNorm(.)).

    Args:
        q, k, v: (B, T, S, heads, d), any strides with unit stride in d (else one copy); d a multiple of 8 up to 128;
            float32, bfloat16, float16 (float64 on CPU). No limit on B * S * heads.
            Cross-attention: k, v (B, L, 1, heads, d), a context that every frame and position attends to, by a kernel
            up to L = 64 (on a GPU where a number from max(L, 8) to 64 divides T * S), else by the reference. Without
            bias, causal, rope; mask is (B, L).
        bias: (heads, T, T), added to the logits; differentiable.
        causal: a frame sees itself and the frames before it.
        mask: (B, T) bool, True where the key is seen. A query that sees no key gives 0.
        qk_norm: RMS-norm weights (d,) of q and k; differentiable.
        rope: base of the rotary embedding over frames, or its tables cos and sin (T, d/2). Constants.
        scale: of the logits; d ** -0.5 where None.
        eps: of the RMS norm.

    Returns:
        (B, T, S, heads, d), contiguous, dtype of q. Moves 4 tensors forward, 7 backward; saves q, k and v.

    Raises:
        TypeError: q, k, v are not floating point or differ in dtype or device; mask is not bool.
        ValueError: shapes do not fit: heads, head dim, frames over the bias table, mask, weights, tables; or one of
            these is on another device than q.

    Source: Vaswani et al. 2017, "Attention Is All You Need", eq. 1; Ho et al. 2022, "Video Diffusion Models".
    """
    op = "temporal_attention"
    for name, x in (("q", q), ("k", k), ("v", v)):
        check_tokens(op, name, x)
    if k.shape[2] == v.shape[2] == 1 and k.shape != q.shape:
        check_same_kind(op, q, k=k, v=v)
        _check_context(op, q, k, v, mask, qk_norm, bias is not None or causal or rope is not None)
        return _cross_attention(q, k, v, mask, qk_norm, scale, eps)
    for name, x in (("k", k), ("v", v)):
        if x.shape != q.shape:
            what = f"{x.shape[3]} heads, q has {q.shape[3]}" if x.shape[3] != q.shape[3] else f"{tuple(x.shape)}"
            raise ValueError(f"{op}: {name} has {what}; all three must be (B, T, S, heads, d) = {tuple(q.shape)}")
    check_same_kind(op, q, k=k, v=v)
    tables = _tables(q, rope)
    _check_options(op, q, bias, mask, qk_norm, tables)
    fused = qk_norm is not None or tables is not None
    backend = _dispatch.choose(op, PREDICATES, q, fused, constants=rope_constants(tables))
    # Kernels divide by the number of heads and of positions.
    if backend == "reference" or 0 in q.shape:
        options = {"bias": bias, "causal": causal, "mask": mask, "qk_norm": qk_norm, "rope": tables, "scale": scale}
        return _dispatch.call_reference(reference.temporal_attention, q, k, v, eps=eps, **options)
    values = _kernel_options(q, bias, causal, mask, qk_norm, tables, scale, eps)
    return _dispatch.apply(_Attention, rows(q), rows(k), rows(v), backend, *values)


def temporal_attention_qkv(
    qkv: Tensor,
    *,
    bias: Tensor | None = None,
    causal: bool = False,
    mask: Tensor | None = None,
    qk_norm: Norm | None = None,
    rope: float | Tables | None = None,
    scale: float | None = None,
    eps: float = 1e-6,
) -> Tensor:
    """out = temporal_attention(q, k, v) with [q | k | v] = qkv, the output of one Linear; one packed gradient.

    Args:
        qkv: (B, T, S, 3, heads, d), any strides with unit stride in d.
        bias, causal, mask, qk_norm, rope, scale, eps: as in `temporal_attention`.

    Returns:
        (B, T, S, heads, d), contiguous, dtype of qkv. Saves qkv.

    Raises:
        TypeError, ValueError: as `temporal_attention`, and where qkv is not packed.

    Source: as `temporal_attention`.
    """
    op = "temporal_attention"
    check_packed(op, qkv)
    q = qkv.select(3, 0)
    tables = _tables(q, rope)
    _check_options(op, q, bias, mask, qk_norm, tables)
    fused = qk_norm is not None or tables is not None
    backend = _dispatch.choose(op, PREDICATES, q, fused, constants=rope_constants(tables))
    # Kernels divide by the number of heads and of positions.
    if backend == "reference" or 0 in q.shape:
        options = {"bias": bias, "causal": causal, "mask": mask, "qk_norm": qk_norm, "rope": tables, "scale": scale}
        return _dispatch.call_reference(reference.temporal_attention_qkv, qkv, eps=eps, **options)
    values = _kernel_options(q, bias, causal, mask, qk_norm, tables, scale, eps)
    return _dispatch.apply(_PackedAttention, rows(qkv), backend, *values)
