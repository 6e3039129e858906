"""Public function: errors, layout, backend choice, autograd."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from vdiff_fast import _derivatives, _dispatch, layout
from vdiff_fast.ops._common.channel_vectors import affine, for_reference, laid_out, modulation, three_axes
from vdiff_fast.ops.rms_norm_silu import reference

_OP = "rms_norm_silu"
# Two numbers of each channel are held in the shared memory of a block.
MAX_CUDA_CHANNELS = 16384


def _why_not_cuda(x: Tensor, *facts: Any) -> str | None:
    if x.shape[1] > MAX_CUDA_CHANNELS:
        return f"{x.shape[1]} channels > {MAX_CUDA_CHANNELS}, what a block holds the vectors of"
    return _dispatch.why_not_cuda(x)


PREDICATES = _dispatch.predicates(__package__, cuda=_why_not_cuda)
_KERNELS = _dispatch.kernel_modules(__package__)


class _RMSNormSiLU(torch.autograd.Function):
    """Saves its inputs and one number per position."""

    @staticmethod
    def forward(
        x: Tensor,
        weight: Tensor | None,
        scale: Tensor | None,
        shift: Tensor | None,
        eps: float,
        silu: bool,
        backend: str,
    ) -> tuple[Tensor, Tensor]:
        return _KERNELS[backend].forward(x, weight, eps, scale, shift, silu)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        x, weight, scale, shift, ctx.eps, ctx.silu, ctx.backend = inputs
        ctx.mark_non_differentiable(output[1])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x, weight, output[1], scale, shift)

    @staticmethod
    def backward(ctx: Any, dy: Tensor | None, drstd: None) -> tuple[Tensor | None, ...]:
        if dy is None:
            return (None,) * 7
        x, weight, rstd, scale, shift = ctx.saved_tensors
        if _derivatives.continued():
            formula = partial(_formula, ctx.eps, ctx.silu)
            return *_derivatives.gradients(formula, (x, weight, scale, shift), dy), None, None, None
        dx, dweight, dscale, dshift = _KERNELS[ctx.backend].backward(
            laid_out(dy, x.is_contiguous()), x, weight, rstd, scale, shift, ctx.silu
        )
        return (
            dx,
            None if weight is None else dweight,
            None if scale is None else dscale,
            None if shift is None else dshift,
            None, None, None,
        )  # fmt: skip


def _formula(
    eps: float, silu: bool, x: Tensor, weight: Tensor | None, scale: Tensor | None, shift: Tensor | None
) -> Tensor:
    """The reference of what the kernels take."""
    return reference.rms_norm_silu(
        x, weight, eps=eps, scale=for_reference(scale, x), shift=for_reference(shift, x),
        activation="silu" if silu else "none",
    )  # fmt: skip


def rms_norm_silu(
    x: Tensor,
    weight: Tensor | None = None,
    *,
    eps: float = 1e-6,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    activation: str = "silu",
) -> Tensor:
    """y = act(x / sqrt(mean_C(x^2) + eps) * weight * (1 + scale) + shift), the mean over the channels of each position.

    `F.normalize(x, dim=1) * sqrt(C) * weight` of lucidrains' video diffusion and Wan's VAE, with the mean square in
    float32: it neither underflows nor overflows in float16.

    Args:
        x: (B, C, ...), usually (B, C, T, H, W); float32, bfloat16, float16 (float64 on CPU). Contiguous and
            channels-last are read as they are, any other strides cost one copy.
        weight: (C,) of any floating dtype.
        eps: added to the mean square.
        scale, shift: (B, C), one per sample, or (B, T, C), one per frame; or x's own rank with size 1 in space.
        activation: "silu" or "none".

    Returns:
        x's shape, dtype and memory layout. Minimum traffic is 2 activations forward, 3 backward; saved for the
        backward are x, the small vectors, and one number per position.

    Raises:
        TypeError: x is not floating point.
        ValueError: a vector has the wrong shape or device, or the activation is unknown.

    Source: Zhang and Sennrich 2019, "Root Mean Square Layer Normalization", eq. 4.
    """
    if not x.is_floating_point():
        raise TypeError(f"{_OP}: x must be floating point, got {x.dtype}")
    if x.dim() < 2:
        raise ValueError(f"{_OP}: x must be (B, C, ...), got shape {tuple(x.shape)}")
    if activation not in ("silu", "none"):
        raise ValueError(f"{_OP}: activation must be 'silu' or 'none', got {activation!r}")
    shape, channels = x.shape, x.shape[1]
    weight = affine(_OP, "weight", weight, x, channels)
    scale, shift = modulation(_OP, "scale", scale, x, channels), modulation(_OP, "shift", shift, x, channels)
    backend = _dispatch.choose(_OP, PREDICATES, x)
    x = three_axes(x)
    if backend == "reference":
        y = _dispatch.call_reference(partial(_formula, eps, activation == "silu"), x, weight, scale, shift)
    else:
        x = x if layout.is_channels_last(x) else layout.native(x)
        y, _ = _dispatch.apply(_RMSNormSiLU, x, weight, scale, shift, eps, activation == "silu", backend)
    return y if y.dim() == len(shape) else y.reshape(shape)  # reshape changes strides of size-1 dims
