"""Public function: errors, backend choice, autograd."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vdiff_fast import _derivatives, _dispatch
from vdiff_fast.ops._common.modulation import wide_vector
from vdiff_fast.ops.geglu import reference

PREDICATES = _dispatch.predicates(__package__)
_KERNELS = _dispatch.kernel_modules(__package__)


class _GEGLU(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor, bias: Tensor | None, backend: str) -> Tensor:
        return _KERNELS[backend].forward(x, bias)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, bias, ctx.backend = inputs
        ctx.save_for_backward(x, bias)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, bias = ctx.saved_tensors
        if _derivatives.continued():
            return *_derivatives.gradients(reference.geglu, (x, bias), dy), None
        dx, dbias = _KERNELS[ctx.backend].backward(dy.contiguous(), x, bias)
        return dx, None if bias is None else dbias, None


def geglu(x: Tensor, bias: Tensor | None = None) -> Tensor:
    """y = a * GELU(g) with [a | g] = x + bias split in halves along the last axis; GELU(g) = g * Phi(g), exact.

    The bias is that of the Linear before it, `geglu(x @ weight.T, bias)`: added here it costs no pass of its own.

    Args:
        x: (..., 2H), any strides (one copy unless contiguous); float32, bfloat16, float16 (float64 on CPU).
        bias: (2H,) of any floating dtype, or None.

    Returns:
        (..., H), contiguous, dtype of x. Moves 3 tensors of the output's size forward and 5 backward; saves x and bias.

    Raises:
        TypeError: x is not floating point.
        ValueError: the last axis is odd, x has no axis, or the bias has the wrong shape or device.

    Source: Shazeer 2020, "GLU Variants Improve Transformer", eq. 6.
    """
    if not x.is_floating_point():
        raise TypeError(f"geglu: x must be floating point, got {x.dtype}")
    if x.dim() == 0 or x.shape[-1] % 2:
        raise ValueError(f"geglu: the last axis is split in halves, but x has shape {tuple(x.shape)}")
    wide_bias = wide_vector("geglu", "bias", bias, x)
    backend = _dispatch.choose("geglu", PREDICATES, x)
    if backend == "reference":
        return _dispatch.call_reference(reference.geglu, x, bias)
    return _dispatch.apply(_GEGLU, x.contiguous(), wide_bias, backend)
