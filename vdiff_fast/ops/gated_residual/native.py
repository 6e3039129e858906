"""Calls into the native library, and the fakes that Triton shares."""

from __future__ import annotations

import torch
from torch import Tensor

from vdiff_fast import _library
from vdiff_fast.ops._common.modulation import vector_like


def fake_forward(residual: Tensor, branch: Tensor, gate: Tensor) -> Tensor:
    return torch.empty_like(residual)


def fake_backward(dy: Tensor, branch: Tensor, gate: Tensor) -> tuple[Tensor, Tensor]:
    return torch.empty_like(branch), vector_like(gate)


_library.register_fake("gated_residual_forward", fake_forward)
_library.register_fake("gated_residual_backward", fake_backward)


def forward(*args: object) -> Tensor:
    return torch.ops.vdiff_fast.gated_residual_forward.default(*args)


def backward(*args: object) -> tuple[Tensor, Tensor]:
    return torch.ops.vdiff_fast.gated_residual_backward.default(*args)
