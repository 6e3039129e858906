"""Calls into the native library, and the fakes that Triton shares."""

from __future__ import annotations

import torch
from torch import Tensor

from vdiff_fast import _library
from vdiff_fast.ops._common.modulation import row_statistics, vector_like

Backward = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]


def fake_forward(
    x: Tensor, shift: Tensor, scale: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x), row_statistics(x)


def fake_backward(
    dy: Tensor, x: Tensor, scale: Tensor, weight: Tensor | None, bias: Tensor | None, statistics: Tensor
) -> Backward:
    dweight, dbias = (x.new_empty((0,)) if v is None else torch.empty_like(v) for v in (weight, bias))
    return torch.empty_like(x), vector_like(scale), vector_like(scale), dweight, dbias


_library.register_fake("layer_norm_modulate_forward", fake_forward)
_library.register_fake("layer_norm_modulate_backward", fake_backward)


def forward(*args: object) -> tuple[Tensor, Tensor]:
    return torch.ops.vdiff_fast.layer_norm_modulate_forward.default(*args)


def backward(*args: object) -> Backward:
    return torch.ops.vdiff_fast.layer_norm_modulate_backward.default(*args)
