"""Calls into the native library."""

from __future__ import annotations

import torch
from torch import Tensor

from vdiff_fast import _library


def fake_timestep_mlp(
    t: Tensor,
    w1: Tensor,
    b1: Tensor | None,
    w2: Tensor,
    b2: Tensor | None,
    max_period: float,
    shift: float,
    flip_sin_to_cos: bool,
    scale: float,
) -> tuple[Tensor, Tensor]:
    wide = torch.float64 if w1.dtype == torch.float64 else torch.float32
    return w1.new_empty((t.shape[0], w2.shape[0])), w1.new_empty((t.shape[0], w1.shape[0]), dtype=wide)


_library.register_fake("timestep_mlp", fake_timestep_mlp)


def timestep_mlp(
    t: Tensor,
    w1: Tensor,
    b1: Tensor | None,
    w2: Tensor,
    b2: Tensor | None,
    max_period: float,
    shift: float,
    flip_sin_to_cos: bool,
    scale: float,
) -> tuple[Tensor, Tensor]:
    return torch.ops.vdiff_fast.timestep_mlp.default(t, w1, b1, w2, b2, max_period, shift, flip_sin_to_cos, scale)
