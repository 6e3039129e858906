"""Public function: errors, backend choice, autograd."""

from __future__ import annotations

from torch import Tensor

from vdiff_fast import _dispatch
from vdiff_fast.ops._channel_vectors import affine
from vdiff_fast.ops.gelu_tanh import reference

_OP = "gelu_tanh"
PREDICATES = {"reference": _dispatch.why_not_reference}


def gelu_tanh(x: Tensor, bias: Tensor | None = None) -> Tensor:
    """y = z/2 * (1 + tanh(sqrt(2/pi) * (z + 0.044715 z^3))), z = x + bias: GELU as DiT, Latte and Wan compute it.

    The bias is that of the Linear before it, `gelu_tanh(x @ weight.T, bias)`: added here it costs no pass of its own.

    Args:
        x: (..., D), any strides (one copy unless contiguous); float32, bfloat16, float16 (float64 on CPU).
        bias: (D,) of any floating dtype, or None.

    Returns:
        x's shape and dtype, contiguous. Moves 2 activations forward, 3 backward; saves x and bias.

    Raises:
        TypeError: an integer tensor.
        ValueError: x has no axis, or a bias of the wrong shape or device.

    Source: Hendrycks and Gimpel 2016, "Gaussian Error Linear Units", section 2.
    """
    if not x.is_floating_point():
        raise TypeError(f"{_OP}: x must be floating point, got {x.dtype}")
    if x.dim() == 0:
        raise ValueError(f"{_OP}: x must be (..., D), got shape ()")
    bias = affine(_OP, "bias", bias, x, x.shape[-1])
    _dispatch.choose(_OP, PREDICATES, x)
    return _dispatch.call_reference(reference.gelu_tanh, x, bias)
