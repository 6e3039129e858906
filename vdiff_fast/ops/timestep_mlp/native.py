"""Calls into the native library. Arguments are the schema's (csrc/ops/timestep_mlp/schema.cpp)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vdiff_fast import _library


def fake_timestep_mlp(t: Tensor, w1: Tensor, b1: Tensor | None, w2: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    wide = torch.float64 if w1.dtype == torch.float64 else torch.float32
    return w1.new_empty((t.shape[0], w2.shape[0])), w1.new_empty((t.shape[0], w1.shape[0]), dtype=wide)


def fake_timestep_mlp_backward(dy: Tensor, t: Tensor, w1: Tensor, w2: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    shapes = (w1.shape, w1.shape[:1], w2.shape, w2.shape[:1])
    return tuple(w1.new_empty(shape if needed else (0,)) for shape, needed in zip(shapes, rest[-4:]))


_library.register_fake("timestep_mlp", fake_timestep_mlp)
_library.register_fake("timestep_mlp_backward", fake_timestep_mlp_backward)


def timestep_mlp(*arguments: Any) -> tuple[Tensor, Tensor]:
    return torch.ops.vdiff_fast.timestep_mlp.default(*arguments)


def backward(*arguments: Any) -> tuple[Tensor, ...]:
    """CPU only: dw1, db1, dw2, db2, without elements where not needed."""
    return torch.ops.vdiff_fast.timestep_mlp_backward.default(*arguments)
