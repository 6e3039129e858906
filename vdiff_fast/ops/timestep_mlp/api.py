"""Public function: errors and backend choice."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from vdiff_fast import _derivatives, _dispatch
from vdiff_fast.ops._common.times import check_times, kernel_times
from vdiff_fast.ops.timestep_embedding import timestep_embedding
from vdiff_fast.ops.timestep_mlp import reference

_KERNELS = _dispatch.kernel_modules(__package__)


def _of_weights(predicate: _dispatch.Predicate) -> _dispatch.Predicate:
    """A generic predicate asked about the weights: times may be integers."""

    def why_not(x: Tensor, w1: Tensor | None = None) -> str | None:
        return predicate(x if w1 is None else w1)

    return why_not


PREDICATES = _dispatch.predicates(__package__, _of_weights)


class _TimestepMLP(torch.autograd.Function):
    """Saves the hidden layer before its activation, (B, H): a thousandth of the weights that making it again reads."""

    @staticmethod
    def forward(
        t: Tensor, w1: Tensor, b1: Tensor | None, w2: Tensor, b2: Tensor | None, options: tuple[Any, ...], backend: str
    ) -> tuple[Tensor, Tensor]:
        return _KERNELS[backend].timestep_mlp(t, w1, b1, w2, b2, *options)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        t, w1, b1, w2, b2, ctx.options, ctx.backend = inputs
        ctx.mark_non_differentiable(output[1])
        # The biases are parameters, which live on anyway.
        ctx.save_for_backward(t, w1, b1, w2, b2, output[1])

    @staticmethod
    def backward(ctx: Any, dy: Tensor, _: Tensor) -> tuple[Any, ...]:
        t, w1, b1, w2, b2, pre = ctx.saved_tensors
        if _derivatives.continued():
            formula = partial(_formula, ctx.options)
            return *_derivatives.gradients(formula, (t, w1, b1, w2, b2), dy), None, None
        needed = ctx.needs_input_grad[1:5]
        if ctx.backend == "cpu":
            found = _KERNELS["cpu"].backward(dy.contiguous(), t, w1, w2, pre, *ctx.options, *needed)
            return None, *(g if need else None for g, need in zip(found, needed)), None, None
        need_w1, need_b1, need_w2, need_b2 = needed
        dw1 = db1 = dw2 = db2 = None
        if need_w2:
            dw2 = dy.t() @ torch.nn.functional.silu(pre).to(dy.dtype)
        if need_b2:
            db2 = dy.sum(0)
        if need_w1 or need_b1:
            gate = torch.sigmoid(pre)
            dpre = ((dy @ w2) * (gate * (1 + pre * (1 - gate)))).to(dy.dtype)
            db1 = dpre.sum(0) if need_b1 else None
        if need_w1:
            max_period, shift, flip, scale = ctx.options
            times = t if dy.dtype == torch.float64 else t.float()
            sinusoids = timestep_embedding(
                times, w1.shape[1], max_period=max_period, shift=shift, flip_sin_to_cos=flip, scale=scale
            )
            dw1 = dpre.t() @ sinusoids.to(dy.dtype)
        return None, dw1, db1, dw2, db2, None, None


def _formula(
    options: tuple[Any, ...], t: Tensor, w1: Tensor, b1: Tensor | None, w2: Tensor, b2: Tensor | None
) -> Tensor:
    """The reference of what the kernels take."""
    max_period, shift, flip, scale = options
    return reference.timestep_mlp(
        t, w1, b1, w2, b2, max_period=max_period, shift=shift, flip_sin_to_cos=flip, scale=scale
    )


def _check(t: Tensor, w1: Tensor, b1: Tensor | None, w2: Tensor, b2: Tensor | None) -> None:
    for name, weight in (("w1", w1), ("w2", w2)):
        if not weight.is_floating_point():
            raise TypeError(f"timestep_mlp: {name} must be floating point, got {weight.dtype}")
        if weight.dim() != 2:
            raise ValueError(f"timestep_mlp: {name} must be (out, in), got shape {tuple(weight.shape)}")
    if w2.shape[1] != w1.shape[0]:
        raise ValueError(
            f"timestep_mlp: w2 takes {w2.shape[1]} features but w1 gives {w1.shape[0]}; "
            f"shapes {tuple(w1.shape)} and {tuple(w2.shape)}"
        )
    for name, bias, weight in (("b1", b1, w1), ("b2", b2, w2)):
        if bias is not None and bias.shape != weight.shape[:1]:
            raise ValueError(f"timestep_mlp: {name} must be ({weight.shape[0]},), got shape {tuple(bias.shape)}")
    for name, tensor in (("b1", b1), ("w2", w2), ("b2", b2)):
        if tensor is not None and tensor.dtype != w1.dtype:
            raise TypeError(f"timestep_mlp: {name} is {tensor.dtype}, w1 is {w1.dtype}; all weights share one dtype")


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
    """y = W2 SiLU(W1 e(t) + b1) + b2, with e(t) the sinusoids of `timestep_embedding`, (B, D).

    Args:
        t: (B,), integers or floats, any strides. Differentiable by the reference alone.
        w1, b1: (H, D) and (H,) or None; float32, bfloat16, float16 (float64 on CPU), any strides.
        w2, b2: (E, H) and (E,) or None, dtype of w1.
        max_period, shift, flip_sin_to_cos, scale: as in `timestep_embedding`.

    Returns:
        (B, E) contiguous, dtype of w1. Reads H D + E H weights once.

    Raises:
        TypeError: t is no tensor of numbers, a weight is not floating point, or the weights differ in dtype.
        ValueError: t is not (B,), the shapes do not fit together, or a tensor is on another device than w1.

    Source: Ho et al. 2020, appendix B; Dhariwal, Nichol 2021.
    """
    _check(t, w1, b1, w2, b2)
    check_times("timestep_mlp", t, w1.shape[1], max_period, shift)
    for name, tensor in (("t", t), ("b1", b1), ("w2", w2), ("b2", b2)):
        if tensor is not None and tensor.device != w1.device:
            raise ValueError(f"timestep_mlp: {name} is on {tensor.device}, w1 is on {w1.device}; move {name}")
    backend = _dispatch.choose("timestep_mlp", PREDICATES, t, w1, constants={"t": t})
    # The kernel divides the work by rows of weights.
    if backend == "reference" or 0 in (*w1.shape, *w2.shape):
        options = {"max_period": max_period, "shift": shift, "flip_sin_to_cos": flip_sin_to_cos, "scale": scale}
        return _dispatch.call_reference(reference.timestep_mlp, t, w1, b1, w2, b2, **options)
    numbers = (float(max_period), float(shift), flip_sin_to_cos, float(scale))
    t, w1, w2 = kernel_times(t), w1.contiguous(), w2.contiguous()
    b1, b2 = (None if bias is None else bias.contiguous() for bias in (b1, b2))
    learned = any(weight is not None and weight.requires_grad for weight in (w1, b1, w2, b2))
    if learned and torch.is_grad_enabled():
        return _dispatch.apply(_TimestepMLP, t, w1, b1, w2, b2, numbers, backend)[0]
    return _KERNELS[backend].timestep_mlp(t, w1, b1, w2, b2, *numbers)[0]
