"""Launches of the Triton kernels, registered as operators."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vdiff_fast import _library
from vdiff_fast.ops._common.triton.layer_norm import backward_kernel, forward_kernel, launch_backward, sizes, strides
from vdiff_fast.ops.layer_norm_modulate.native import Backward, fake_backward, fake_forward

__all__ = ["backward", "backward_kernel", "forward", "forward_kernel"]


def _launch_forward(
    x: Tensor, shift: Tensor, scale: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor]:
    y, statistics = fake_forward(x, shift, scale, weight, bias, eps)
    if x.numel() == 0:
        return y, statistics
    shared, config = sizes(x, scale, backward=False)
    affine = (x if v is None else v for v in (weight, bias))  # an absent tensor's pointer is not touched
    forward_kernel[(shared["rows"],)](
        x, x, x, shift, scale, *affine, x, y, statistics,
        **shared, **strides(gate=scale, shift=shift, scale=scale), eps=eps, GATED=False,
        HAS_WEIGHT=weight is not None, HAS_BIAS=bias is not None, **config.pieces, num_warps=config.num_warps,
    )  # fmt: skip
    return y, statistics


def _launch_backward(
    dy: Tensor, x: Tensor, scale: Tensor, weight: Tensor | None, bias: Tensor | None, statistics: Tensor
) -> Backward:
    dx, dshift, dscale, dweight, dbias = fake_backward(dy, x, scale, weight, bias, statistics)
    if x.numel() == 0:
        return dx, dshift.zero_(), dscale.zero_(), dweight.zero_(), dbias.zero_()
    sums = launch_backward(dy, None, x, None, None, scale, weight, bias, statistics, dx, None, [dshift, dscale])
    if sums.dim() == 2:  # a vector per token: dshift and dscale are written
        dz, dz_normed = sums
    else:
        # A few vectors, so plain torch: dscale multiplies normed * weight + bias.
        dy_sum, dy_normed = sums[:, :, 0], sums[:, :, 1]
        dscale_sum = dy_normed if weight is None else dy_normed * weight
        dscale_sum = dscale_sum if bias is None else dscale_sum + dy_sum * bias
        gain = 1 + scale.to(sums.dtype)
        dz, dz_normed = ((s * gain).sum((0, 1)) for s in (dy_sum, dy_normed))
        dshift, dscale = (s.to(x.dtype, copy=True).contiguous() for s in (dy_sum, dscale_sum))
    dweight = dweight if weight is None else dz_normed.to(weight.dtype)
    dbias = dbias if bias is None else dz.to(bias.dtype)
    return dx, dshift, dscale, dweight, dbias


_library.define_triton(
    "layer_norm_modulate_forward(Tensor x, Tensor shift, Tensor scale, Tensor? weight, Tensor? bias, float eps) "
    "-> (Tensor, Tensor)",
    _launch_forward,
    fake_forward,
)
_library.define_triton(
    "layer_norm_modulate_backward(Tensor dy, Tensor x, Tensor scale, Tensor? weight, Tensor? bias, "
    "Tensor statistics) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    _launch_backward,
    fake_backward,
)


def forward(*args: Any) -> tuple[Tensor, Tensor]:
    return torch.ops.vdiff_fast_triton.layer_norm_modulate_forward.default(*args)


def backward(*args: Any) -> Backward:
    return torch.ops.vdiff_fast_triton.layer_norm_modulate_backward.default(*args)
