"""Calls into the native library."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vdiff_fast import _library


def fake_noise(
    seed: Tensor, sample_offset: Tensor | None, stream: Tensor | None, batch: int, per_sample: int, dtype: torch.dtype
) -> Tensor:
    return seed.new_empty((batch, per_sample), dtype=dtype)


def fake_correlated_noise(
    seed: Tensor,
    sample_offset: Tensor | None,
    stream: Tensor | None,
    batch: int,
    per_sample: int,
    dtype: torch.dtype,
    frames: int,
    shared: float,
    own: float,
    progressive: bool,
) -> Tensor:
    return seed.new_empty((batch, per_sample), dtype=dtype)


_library.register_fake("noise", fake_noise)
_library.register_fake("correlated_noise", fake_correlated_noise)


def noise(
    seed: Tensor, sample_offset: Tensor | None, stream: Tensor | None, batch: int, per_sample: int, dtype: torch.dtype
) -> Tensor:
    return torch.ops.vdiff_fast.noise.default(seed, sample_offset, stream, batch, per_sample, dtype)


def correlated_noise(*arguments: Any) -> Tensor:
    return torch.ops.vdiff_fast.correlated_noise.default(*arguments)
