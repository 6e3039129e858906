"""Calls into the native library. Arguments are the schema's (csrc/ops/diffusion_loss/schema.cpp)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vdiff_fast import _library


def fake_loss(prediction: Tensor, *arguments: Any) -> Tensor:
    mean = arguments[-1]
    dtype = torch.float64 if prediction.dtype == torch.float64 else torch.float32
    return prediction.new_empty(() if mean else (prediction.shape[0],), dtype=dtype)


def fake_loss_and_gradient(prediction: Tensor, *arguments: Any) -> tuple[Tensor, Tensor]:
    return fake_loss(prediction, *arguments), torch.empty_like(prediction)


def fake_backward(upstream: Tensor, prediction: Tensor, *arguments: Any) -> Tensor:
    return torch.empty_like(prediction)


_library.register_fake("diffusion_loss", fake_loss)
_library.register_fake("diffusion_loss_and_gradient", fake_loss_and_gradient)
_library.register_fake("diffusion_loss_backward", fake_backward)


def loss(*arguments: Any) -> Tensor:
    return torch.ops.vdiff_fast.diffusion_loss.default(*arguments)


def loss_and_gradient(*arguments: Any) -> tuple[Tensor, Tensor]:
    return torch.ops.vdiff_fast.diffusion_loss_and_gradient.default(*arguments)


def backward(*arguments: Any) -> Tensor:
    return torch.ops.vdiff_fast.diffusion_loss_backward.default(*arguments)
