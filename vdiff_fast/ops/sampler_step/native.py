"""Calls into the native library."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from vdiff_fast import _library


class Call(NamedTuple):
    """The arguments of one step in the order of csrc/ops/sampler_step/schema.cpp; words are 0-d int64 tensors."""

    x: Tensor
    prediction: Tensor
    table: Tensor
    step: Tensor
    uncond: Tensor | None
    previous: Tensor | None
    previous2: Tensor | None
    noise: Tensor | None
    seed: Tensor | None
    sample_offset: Tensor | None
    stream: Tensor | None
    guidance_rescale: float
    clip_mode: int
    clip: float
    clip_max: float
    frames: int
    shared: float
    own: float
    progressive: bool


def fake_sampler_step(x: Tensor, *rest: Tensor | float | None) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x), torch.empty_like(x)


_library.register_fake("sampler_step", fake_sampler_step)


def sampler_step(c: Call) -> tuple[Tensor, Tensor]:
    return torch.ops.vdiff_fast.sampler_step.default(*c)
