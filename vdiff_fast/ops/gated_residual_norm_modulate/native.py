"""Calls into the native library, and the fakes that Triton shares."""

from __future__ import annotations

import torch
from torch import Tensor

from vdiff_fast import _library
from vdiff_fast.ops._common.modulation import row_statistics, vector_like

Backward = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]


def fake_forward(
    residual: Tensor, branch: Tensor, gate: Tensor, shift: Tensor, scale: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(residual), torch.empty_like(residual), row_statistics(residual)


def fake_backward(
    dy: Tensor, dh: Tensor | None, h: Tensor, branch: Tensor, gate: Tensor, scale: Tensor, statistics: Tensor
) -> Backward:
    return torch.empty_like(h), torch.empty_like(h), vector_like(gate), vector_like(scale), vector_like(scale)


_library.register_fake("gated_residual_norm_modulate_forward", fake_forward)
_library.register_fake("gated_residual_norm_modulate_backward", fake_backward)


def forward(*args: object) -> tuple[Tensor, Tensor, Tensor]:
    return torch.ops.vdiff_fast.gated_residual_norm_modulate_forward.default(*args)


def backward(*args: object) -> Backward:
    return torch.ops.vdiff_fast.gated_residual_norm_modulate_backward.default(*args)
