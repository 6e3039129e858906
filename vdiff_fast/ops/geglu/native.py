"""Calls into the native library, and the fakes that Triton shares."""

from __future__ import annotations

import torch
from torch import Tensor

from vdiff_fast import _library


def fake_forward(x: Tensor, bias: Tensor | None) -> Tensor:
    return x.new_empty((*x.shape[:-1], x.shape[-1] // 2))


def fake_backward(dy: Tensor, x: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x), x.new_empty((0,)) if bias is None else torch.empty_like(bias)


_library.register_fake("geglu_forward", fake_forward)
_library.register_fake("geglu_backward", fake_backward)


def forward(x: Tensor, bias: Tensor | None) -> Tensor:
    return torch.ops.vdiff_fast.geglu_forward.default(x, bias)


def backward(dy: Tensor, x: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    return torch.ops.vdiff_fast.geglu_backward.default(dy, x, bias)
