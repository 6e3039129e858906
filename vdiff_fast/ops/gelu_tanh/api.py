"""Public function: errors, backend choice, autograd."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vdiff_fast import _derivatives, _dispatch
from vdiff_fast.ops._common.modulation import wide_vector
from vdiff_fast.ops.gelu_tanh import reference

_OP = "gelu_tanh"
PREDICATES = _dispatch.predicates(__package__)
_KERNELS = _dispatch.kernel_modules(__package__)


class _GELUTanh(torch.autograd.Function):
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
            return *_derivatives.gradients(reference.gelu_tanh, (x, bias), dy), None
        dx, dbias = _KERNELS[ctx.backend].backward(dy.contiguous(), x, bias)
        return dx, None if bias is None else dbias, None


def gelu_tanh(x: Tensor, bias: Tensor | None = None) -> Tensor:
    """y = z/2 * (1 + tanh(sqrt(2/pi) * (z + 0.044715 z^3))), z = x + bias: GELU as DiT, Latte and Wan compute it.

    The bias is that of the Linear before it, `gelu_tanh(x @ weight.T, bias)`: added here it costs no pass of its own.

    Args:
        x: (..., D), any strides (one copy unless contiguous); float32, bfloat16, float16 (float64 on CPU).
        bias: (D,) of any floating dtype, or None.

    Returns:
        x's shape and dtype, contiguous. Moves 2 activations forward, 3 backward; saves x and bias.

    Raises:
        TypeError: x is not floating point.
        ValueError: x has no axis, or the bias has the wrong shape or device.

    Source: Hendrycks and Gimpel 2016, "Gaussian Error Linear Units", section 2.
    """
    if not x.is_floating_point():
        raise TypeError(f"{_OP}: x must be floating point, got {x.dtype}")
    if x.dim() == 0:
        raise ValueError(f"{_OP}: x must be (..., D), got shape ()")
    wide_bias = wide_vector(_OP, "bias", bias, x)
    backend = _dispatch.choose(_OP, PREDICATES, x)
    if backend == "reference":
        return _dispatch.call_reference(reference.gelu_tanh, x, bias)
    return _dispatch.apply(_GELUTanh, x.contiguous(), wide_bias, backend)
