"""Public function: errors, backend choice, autograd."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from vdiff_fast import _derivatives, _dispatch
from vdiff_fast.ops._common.layer_norm_config import why_not_cuda, why_not_triton
from vdiff_fast.ops._common.modulation import check_tokens, modulations, summed_over_runs, tokens, wide_vector
from vdiff_fast.ops.layer_norm_modulate import reference

_OP = "layer_norm_modulate"
PREDICATES = _dispatch.predicates(__package__, triton=why_not_triton, cuda=why_not_cuda)
_KERNELS = _dispatch.kernel_modules(__package__)


class _LayerNormModulate(torch.autograd.Function):
    """Saves x, the vectors, and three numbers per token."""

    @staticmethod
    def forward(
        x: Tensor,
        shift: Tensor,
        scale: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        eps: float,
        backend: str,
    ) -> tuple[Tensor, Tensor]:
        return _KERNELS[backend].forward(x, shift, scale, weight, bias, eps)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        x, _, scale, weight, bias, ctx.eps, ctx.backend = inputs
        ctx.mark_non_differentiable(output[1])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x, scale, weight, bias, output[1])

    @staticmethod
    def backward(ctx: Any, dy: Tensor | None, dstatistics: None) -> tuple[Tensor | None, ...]:
        if dy is None:
            return (None,) * 7
        x, scale, weight, bias, statistics = ctx.saved_tensors
        if _derivatives.continued():
            dx, *others = _derivatives.gradients(partial(_formula, eps=ctx.eps), (x, scale, weight, bias), dy)
            return dx, summed_over_runs(dy, scale.shape[1]), *others, None, None
        dx, dshift, dscale, dweight, dbias = _KERNELS[ctx.backend].backward(
            dy.contiguous(), x, scale, weight, bias, statistics
        )
        return dx, dshift, dscale, None if weight is None else dweight, None if bias is None else dbias, None, None


def _formula(x: Tensor, scale: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    """The reference of what the kernels take, without the shift, whose gradient depends on dy alone."""
    return reference.layer_norm_modulate(x, torch.zeros_like(scale), scale, weight=weight, bias=bias, eps=eps)


def layer_norm_modulate(
    x: Tensor,
    shift: Tensor,
    scale: Tensor,
    *,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-6,
) -> Tensor:
    """y = ((x - mean) / sqrt(var + eps) * weight + bias) * (1 + scale) + shift, over the last axis: adaLN.

    Args:
        x: (B, ..., D), usually tokens (B, T, S, D) or (B, N, D); float32, bfloat16, float16 (float64 on CPU).
            Contiguous is read as it is, other strides cost one copy.
        shift, scale: (B, D), one per sample; (B, F, D), one per run of N/F of the N tokens of a sample, so F = T is per
            frame and F = N per token; or x's rank with 1 for the axes they do not vary over. Read by stride: a chunk
            of one Linear's output is not copied. Of another dtype they are converted to x's.
        weight, bias: (D,) of any floating dtype, or None.
        eps: added to the variance.

    Returns:
        x's shape and dtype, contiguous. Moves 2 activations forward, 3 backward; saved for the backward are x, the
        vectors, and three numbers per token.

    Raises:
        TypeError: x is not floating point.
        ValueError: a vector has the wrong shape or device.

    Source: Ba et al. 2016, "Layer Normalization", eq. 4; Peebles and Xie 2023, "Scalable Diffusion Models with
    Transformers", section 3.2 (adaLN).
    """
    check_tokens(_OP, "x", x)
    vectors = modulations(_OP, x, shift=shift, scale=scale)
    wide_weight, wide_bias = wide_vector(_OP, "weight", weight, x), wide_vector(_OP, "bias", bias, x)
    backend = _dispatch.choose(_OP, PREDICATES, x)
    if backend == "reference":
        return _dispatch.call_reference(
            reference.layer_norm_modulate, x, shift, scale, weight=weight, bias=bias, eps=eps
        )
    y, _ = _dispatch.apply(_LayerNormModulate, tokens(x), *vectors, wide_weight, wide_bias, float(eps), backend)
    return y.reshape(x.shape)
