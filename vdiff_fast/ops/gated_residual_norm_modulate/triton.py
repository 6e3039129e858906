"""Launches of the Triton kernels, registered as operators."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vdiff_fast import _library
from vdiff_fast.ops._common.triton.layer_norm import backward_kernel, forward_kernel, launch_backward, sizes, strides
from vdiff_fast.ops.gated_residual_norm_modulate.native import Backward, fake_backward, fake_forward

__all__ = ["backward", "backward_kernel", "forward", "forward_kernel"]


def _launch_forward(
    residual: Tensor, branch: Tensor, gate: Tensor, shift: Tensor, scale: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    h, y, statistics = fake_forward(residual, branch, gate, shift, scale, eps)
    if residual.numel() == 0:
        return h, y, statistics
    shared, config = sizes(residual, gate, backward=False)
    forward_kernel[(shared["rows"],)](
        residual, branch, gate, shift, scale, residual, residual, h, y, statistics,
        **shared, **strides(gate=gate, shift=shift, scale=scale), eps=eps, GATED=True,
        HAS_WEIGHT=False, HAS_BIAS=False, **config.pieces, num_warps=config.num_warps,
    )  # fmt: skip
    return h, y, statistics


def _launch_backward(
    dy: Tensor, dh: Tensor | None, h: Tensor, branch: Tensor, gate: Tensor, scale: Tensor, statistics: Tensor
) -> Backward:
    dresidual, dbranch, dgate, dshift, dscale = fake_backward(dy, dh, h, branch, gate, scale, statistics)
    if h.numel() == 0:
        return dresidual, dbranch, dgate.zero_(), dshift.zero_(), dscale.zero_()
    sums = launch_backward(
        dy, dh, h, branch, gate, scale, None, None, statistics, dresidual, dbranch, [dshift, dscale, dgate]
    )
    if sums.dim() == 4:  # else a vector per token, whose gradients are written
        dshift, dscale, dgate = (s.to(h.dtype, copy=True).contiguous() for s in sums.unbind(2))
    return dresidual, dbranch, dgate, dshift, dscale


_library.define_triton(
    "gated_residual_norm_modulate_forward(Tensor residual, Tensor branch, Tensor gate, Tensor shift, Tensor scale, "
    "float eps) -> (Tensor, Tensor, Tensor)",
    _launch_forward,
    fake_forward,
)
_library.define_triton(
    "gated_residual_norm_modulate_backward(Tensor dy, Tensor? dh, Tensor h, Tensor branch, Tensor gate, Tensor scale, "
    "Tensor statistics) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    _launch_backward,
    fake_backward,
)


def forward(*args: Any) -> tuple[Tensor, Tensor, Tensor]:
    return torch.ops.vdiff_fast_triton.gated_residual_norm_modulate_forward.default(*args)


def backward(*args: Any) -> Backward:
    return torch.ops.vdiff_fast_triton.gated_residual_norm_modulate_backward.default(*args)
