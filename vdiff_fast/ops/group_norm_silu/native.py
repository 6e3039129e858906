"""Calls into the native library, and the fakes that Triton shares."""

from __future__ import annotations

import torch
from torch import Tensor

from vdiff_fast import _library

Forward = tuple[Tensor, Tensor, Tensor]
Backward = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]


def fake_forward(
    x: Tensor,
    x2: Tensor | None,
    num_groups: int,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    scale: Tensor | None,
    shift: Tensor | None,
    add: Tensor | None,
    per_frame: bool,
    silu: bool,
) -> Forward:
    units = x.shape[0] * x.shape[2] if per_frame else x.shape[0]
    statistics = torch.float64 if x.dtype == torch.float64 else torch.float32
    mean, rstd = (x.new_empty((units, num_groups), dtype=statistics) for _ in range(2))
    if x2 is None:
        return torch.empty_like(x), mean, rstd
    batch, space, channels = x.shape[0], x.shape[2:], x.shape[1] + x2.shape[1]
    if x.is_contiguous() and x2.is_contiguous():
        return x.new_empty((batch, channels, *space)), mean, rstd
    return x.new_empty((batch, *space, channels)).movedim(-1, 1), mean, rstd


def fake_backward(
    dy: Tensor,
    x: Tensor,
    x2: Tensor | None,
    num_groups: int,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor,
    rstd: Tensor,
    scale: Tensor | None,
    shift: Tensor | None,
    add: Tensor | None,
    per_frame: bool,
    silu: bool,
) -> Backward:
    dx2, dweight, dbias, dscale, dshift, dadd = (
        x.new_empty((0,)) if t is None else torch.empty_like(t) for t in (x2, weight, bias, scale, shift, add)
    )
    return torch.empty_like(x), dx2, dweight, dbias, dscale, dshift, dadd


_library.register_fake("group_norm_silu_forward", fake_forward)
_library.register_fake("group_norm_silu_backward", fake_backward)


def forward(*args: object) -> Forward:
    return torch.ops.vdiff_fast.group_norm_silu_forward.default(*args)


def backward(*args: object) -> Backward:
    return torch.ops.vdiff_fast.group_norm_silu_backward.default(*args)
