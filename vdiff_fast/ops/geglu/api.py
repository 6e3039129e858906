"""Public function: errors, backend choice, autograd."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vdiff_fast import _dispatch
from vdiff_fast.ops.geglu import reference

PREDICATES = dict(_dispatch.GENERIC_PREDICATES)
_KERNELS = _dispatch.kernel_modules(__package__)


class _GEGLU(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor, backend: str) -> Tensor:
        return _KERNELS[backend].forward(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, ctx.backend = inputs
        ctx.save_for_backward(x)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        return _KERNELS[ctx.backend].backward(dy.contiguous(), x), None


def geglu(x: Tensor) -> Tensor:
    """y = a * GELU(g) with [a | g] = x split in halves along the last axis; GELU(g) = g * Phi(g), exact.

    Args:
        x: (..., 2H), any strides (one copy unless contiguous); float32, bfloat16, float16 (float64 on CPU).

    Returns:
        (..., H), contiguous, dtype of x. Moves 3 bytes-of-H forward, 5 backward; saves x alone.

    Raises:
        TypeError: x is not floating point.
        ValueError: the last axis is odd, or x has no axis.

    Source: Shazeer 2020, "GLU Variants Improve Transformer", eq. 6.
    """
    if not x.is_floating_point():
        raise TypeError(f"geglu: x must be floating point, got {x.dtype}")
    if x.dim() == 0 or x.shape[-1] % 2:
        raise ValueError(f"geglu: the last axis is split in halves, but x has shape {tuple(x.shape)}")
    backend = _dispatch.choose("geglu", PREDICATES, x)
    if backend == "reference":
        return _dispatch.call_reference(reference.geglu, x)
    return _GEGLU.apply(x.contiguous(), backend)
