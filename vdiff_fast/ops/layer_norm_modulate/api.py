"""Public function: errors, backend choice, autograd."""

from __future__ import annotations

from torch import Tensor

from vdiff_fast import _dispatch
from vdiff_fast.ops._channel_vectors import affine
from vdiff_fast.ops._modulation import check_tokens, modulation
from vdiff_fast.ops.layer_norm_modulate import reference

_OP = "layer_norm_modulate"
PREDICATES = {"reference": _dispatch.why_not_reference}


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
        vectors, and two numbers per token.

    Raises:
        TypeError: an integer tensor.
        ValueError: a vector of the wrong shape or device.

    Source: Ba et al. 2016, "Layer Normalization", eq. 4; Peebles and Xie 2023, "Scalable Diffusion Models with
    Transformers", section 3.2 (adaLN).
    """
    check_tokens(_OP, "x", x)
    modulation(_OP, "shift", shift, x)
    modulation(_OP, "scale", scale, x)
    weight, bias = (affine(_OP, n, v, x, x.shape[-1]) for n, v in (("weight", weight), ("bias", bias)))
    _dispatch.choose(_OP, PREDICATES, x)
    return _dispatch.call_reference(reference.layer_norm_modulate, x, shift, scale, weight=weight, bias=bias, eps=eps)
