"""Calls into the native library."""

from __future__ import annotations

import torch
from torch import Tensor

from vdiff_fast import _library


def fake_forward(x: Tensor) -> Tensor:
    return x.new_empty((*x.shape[:-1], x.shape[-1] // 2))


def fake_backward(dy: Tensor, x: Tensor) -> Tensor:
    return torch.empty_like(x)


_library.register_fake("geglu_forward", fake_forward)
_library.register_fake("geglu_backward", fake_backward)


def forward(x: Tensor) -> Tensor:
    return torch.ops.vdiff_fast.geglu_forward.default(x)


def backward(dy: Tensor, x: Tensor) -> Tensor:
    return torch.ops.vdiff_fast.geglu_backward.default(dy, x)
