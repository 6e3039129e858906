"""Public function: errors, layout, backend choice, autograd."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from vdiff_fast import _derivatives, _dispatch, layout
from vdiff_fast.ops._common.channel_vectors import (
    affine,
    check_vector,
    for_reference,
    laid_out,
    modulation,
    three_axes,
)
from vdiff_fast.ops.group_norm_silu import reference

_OP = "group_norm_silu"
PREDICATES = _dispatch.predicates(__package__)
_KERNELS = _dispatch.kernel_modules(__package__)


class _GroupNormSiLU(torch.autograd.Function):
    """Saves its inputs and two numbers per group; the pre-activation is recomputed in the backward."""

    @staticmethod
    def forward(
        x: Tensor,
        x2: Tensor | None,
        weight: Tensor | None,
        bias: Tensor | None,
        scale: Tensor | None,
        shift: Tensor | None,
        add: Tensor | None,
        num_groups: int,
        eps: float,
        per_frame: bool,
        silu: bool,
        backend: str,
    ) -> tuple[Tensor, Tensor, Tensor]:
        return _KERNELS[backend].forward(x, x2, num_groups, weight, bias, eps, scale, shift, add, per_frame, silu)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
        x, x2, weight, bias, scale, shift, add, *options, ctx.backend = inputs
        ctx.num_groups, ctx.eps, ctx.per_frame, ctx.silu = options
        _, mean, rstd = output
        ctx.mark_non_differentiable(mean, rstd)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x, x2, weight, bias, mean, rstd, scale, shift, add)

    @staticmethod
    def backward(ctx: Any, dy: Tensor | None, dmean: None, drstd: None) -> tuple[Tensor | None, ...]:
        if dy is None:
            return (None,) * 12
        x, x2, weight, bias, mean, rstd, scale, shift, add = ctx.saved_tensors
        if _derivatives.continued():
            formula = partial(_formula, ctx.num_groups, ctx.eps, ctx.per_frame, ctx.silu)
            inputs = (x, x2, weight, bias, scale, shift, add)
            return *_derivatives.gradients(formula, inputs, dy), *[None] * 5
        contiguous = x.is_contiguous() and (x2 is None or x2.is_contiguous())
        dx, dx2, dweight, dbias, dscale, dshift, dadd = _KERNELS[ctx.backend].backward(
            laid_out(dy, contiguous), x, x2, ctx.num_groups, weight, bias, mean, rstd, scale, shift, add,
            ctx.per_frame, ctx.silu,
        )  # fmt: skip
        return (
            dx,
            None if x2 is None else dx2,
            None if weight is None else dweight,
            None if bias is None else dbias,
            None if scale is None else dscale,
            None if shift is None else dshift,
            None if add is None else dadd,
            None, None, None, None, None,
        )  # fmt: skip


def _formula(num_groups: int, eps: float, per_frame: bool, silu: bool, x: Tensor, *others: Tensor | None) -> Tensor:
    """The reference of what the kernels take."""
    x2, weight, bias, scale, shift, add = others
    return reference.group_norm_silu(
        x, num_groups, weight, bias, eps, x2=x2, scale=for_reference(scale, x), shift=for_reference(shift, x),
        add=add, per_frame=per_frame, activation="silu" if silu else "none",
    )  # fmt: skip


def _native_pair(x: Tensor, x2: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """x and x2 in one native layout, that of x."""
    if not (x.is_contiguous() or layout.is_channels_last(x)):
        x = layout.native(x)
    if x2 is None:
        return x, None
    if not x.is_contiguous():
        return x, laid_out(x2, contiguous=False)
    # A layout that is both (one channel, or no space) follows x2.
    return x, x2 if layout.is_channels_last(x) and layout.is_channels_last(x2) else x2.contiguous()


def _divisors_below(channels: int, groups: int) -> str:
    divisors = [d for d in range(min(groups - 1, channels), 0, -1) if channels % d == 0]
    return ", ".join(map(str, divisors[:3])) or "none"


def _check_input(x: Tensor, x2: Tensor | None, num_groups: int, per_frame: bool, activation: str) -> int:
    """The number of normalised channels, C + C2."""
    if not x.is_floating_point():
        raise TypeError(f"{_OP}: x must be floating point, got {x.dtype}")
    if x.dim() < 2:
        raise ValueError(f"{_OP}: x must be (B, C, ...), got shape {tuple(x.shape)}")
    channels = x.shape[1]
    if x2 is not None:
        if x2.dtype != x.dtype:
            raise TypeError(f"{_OP}: x2 is {x2.dtype}, x is {x.dtype}; convert x2 to {x.dtype}")
        if x2.device != x.device:
            raise ValueError(f"{_OP}: x2 is on {x2.device}, x on {x.device}")
        if x2.dim() != x.dim() or x2.shape[0] != x.shape[0] or x2.shape[2:] != x.shape[2:]:
            raise ValueError(
                f"{_OP}: x2 {tuple(x2.shape)} must equal x {tuple(x.shape)} in every size but that of the channels"
            )
        channels = channels + x2.shape[1]
    if num_groups < 1:
        raise ValueError(f"{_OP}: num_groups must be positive, got {num_groups}")
    if channels % num_groups:
        raise ValueError(
            f"{_OP}: {channels} channels not divisible by {num_groups} groups; "
            f"largest divisors below: {_divisors_below(channels, num_groups)}"
        )
    if per_frame and x.dim() != 5:
        raise ValueError(f"{_OP}: per_frame needs x (B, C, T, H, W), got shape {tuple(x.shape)}")
    if activation not in ("silu", "none"):
        raise ValueError(f"{_OP}: activation must be 'silu' or 'none', got {activation!r}")
    return channels


def _added(value: Tensor | None, x: Tensor, channels: int) -> Tensor | None:
    """add as (B, C), from (B, C) or x's rank with size-1 space."""
    if value is None:
        return None
    check_vector(_OP, "add", value, x)
    b = x.shape[0]
    if value.shape not in ((b, channels), (b, channels, *[1] * (x.dim() - 2))):
        raise ValueError(f"{_OP}: add must have shape ({b}, {channels}), got {tuple(value.shape)}")
    return value.reshape(b, channels).contiguous()


def group_norm_silu(
    x: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    *,
    x2: Tensor | None = None,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    add: Tensor | None = None,
    per_frame: bool = False,
    activation: str = "silu",
) -> Tensor:
    """y = act(GroupNorm([x | x2] + add) * (1 + scale) + shift).

    GroupNorm(z) = (z - E z) / sqrt(Var z + eps) * weight + bias. Mean and (biased) variance run over one group of
    channels and all positions of a sample, or of a frame with `per_frame`.

    Args:
        x: (B, C, ...), usually (B, C, T, H, W); float32, bfloat16, float16 (float64 on CPU). Contiguous and
            channels-last are read as they are, any other strides cost one copy.
        num_groups: divides C + C2.
        weight, bias: (C + C2,) of any floating dtype.
        eps: added to the variance.
        x2: (B, C2, ...), normalised as if concatenated behind x's channels, without the copy; a group may
            straddle both.
        scale, shift: (B, C + C2), one per sample, or (B, T, C + C2), one per frame; or x's own rank, space 1.
        add: (B, C + C2), added before the statistics: a time embedding.
        per_frame: statistics over each frame of a 5-D x instead of the clip.
        activation: "silu" or "none".

    Returns:
        (B, C + C2, ...) in x's dtype and memory layout. Minimum traffic is 2 activations forward, 3 backward; what is
        saved for the backward is x (and x2), the small vectors, and two numbers per group.

    Raises:
        TypeError: x is not floating point, or x2 has another dtype than x.
        ValueError: num_groups does not divide the channels, a vector has the wrong shape or device, per_frame is
            asked for without frames, or the activation is unknown.

    Source: Wu and He 2018, "Group Normalization"; Dhariwal and Nichol 2021, section 3 (scale and shift).
    """
    channels = _check_input(x, x2, num_groups, per_frame, activation)
    weight, bias = affine(_OP, "weight", weight, x, channels), affine(_OP, "bias", bias, x, channels)
    scale, shift = modulation(_OP, "scale", scale, x, channels), modulation(_OP, "shift", shift, x, channels)
    add = _added(add, x, channels)
    backend = _dispatch.choose(_OP, PREDICATES, x)
    shape = (x.shape[0], channels, *x.shape[2:])
    x, x2 = three_axes(x), None if x2 is None else three_axes(x2)
    vectors = (weight, bias, scale, shift, add)
    options = (num_groups, eps, per_frame, activation == "silu")
    if backend == "reference":
        y = _dispatch.call_reference(partial(_formula, *options), x, x2, *vectors)
    else:
        y, _, _ = _dispatch.apply(_GroupNormSiLU, *_native_pair(x, x2), *vectors, *options, backend)
    return y if y.dim() == len(shape) else y.reshape(shape)  # reshape changes strides of size-1 dims
