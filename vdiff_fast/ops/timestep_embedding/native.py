"""Calls into the native library."""

from __future__ import annotations

import torch
from torch import Tensor

from vdiff_fast import _library


def fake_timestep_embedding(
    t: Tensor, dim: int, max_period: float, shift: float, flip_sin_to_cos: bool, scale: float, dtype: torch.dtype
) -> Tensor:
    return t.new_empty((t.shape[0], dim), dtype=dtype)


_library.register_fake("timestep_embedding", fake_timestep_embedding)


def timestep_embedding(
    t: Tensor, dim: int, max_period: float, shift: float, flip_sin_to_cos: bool, scale: float, dtype: torch.dtype
) -> Tensor:
    return torch.ops.vdiff_fast.timestep_embedding.default(t, dim, max_period, shift, flip_sin_to_cos, scale, dtype)
