"""Public function: errors and backend choice."""

from __future__ import annotations

from torch import Tensor

from vdiff_fast import _dispatch
from vdiff_fast.ops.timestep_embedding.api import check as check_embedding
from vdiff_fast.ops.timestep_mlp import reference

PREDICATES = {"reference": _dispatch.why_not_reference}


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
        t: (B,), integers or floats, any strides. Not differentiable.
        w1, b1: (H, D) and (H,) or None; float32, bfloat16, float16 (float64 on CPU), any strides.
        w2, b2: (E, H) and (E,) or None, dtype of w1.
        max_period, shift, flip_sin_to_cos, scale: as in `timestep_embedding`.

    Returns:
        (B, E) contiguous, dtype of w1. Reads H D + E H weights once.

    Raises:
        TypeError: t is no tensor of numbers, a weight is not floating point, or the weights differ in dtype.
        ValueError: t is not (B,), or the shapes do not fit together.

    Source: Ho et al. 2020, appendix B; Dhariwal, Nichol 2021.
    """
    _check(t, w1, b1, w2, b2)
    check_embedding("timestep_mlp", t, w1.shape[1], max_period, shift)
    options = {"max_period": max_period, "shift": shift, "flip_sin_to_cos": flip_sin_to_cos, "scale": scale}
    _dispatch.choose("timestep_mlp", PREDICATES, w1, t)
    return _dispatch.call_reference(reference.timestep_mlp, t.detach(), w1, b1, w2, b2, **options)
