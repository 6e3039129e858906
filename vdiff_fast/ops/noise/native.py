"""Calls into the native library. Arguments are the schema's (csrc/ops/noise/schema.cpp)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vdiff_fast import _library


def fake_noise(
    seed: Tensor,
    sample_offset: Tensor | None,
    stream: Tensor | None,
    batch: int,
    per_sample: int,
    dtype: torch.dtype,
    *frames: Any,
) -> Tensor:
    return seed.new_empty((batch, per_sample), dtype=dtype)


_library.register_fake("noise", fake_noise)


def noise(*arguments: Any) -> Tensor:
    return torch.ops.vdiff_fast.noise.default(*arguments)
