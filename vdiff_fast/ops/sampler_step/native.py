"""Calls into the native library."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vdiff_fast import _library


@dataclass(frozen=True)
class Call:
    """The arguments of one step as the operators take them: tensors in the layout of x, words as 0-d int64."""

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


def fake_sampler_step(x: Tensor, *rest: Tensor | float | None) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x), torch.empty_like(x)


_library.register_fake("sampler_step", fake_sampler_step)


def sampler_step(c: Call) -> tuple[Tensor, Tensor]:
    return torch.ops.vdiff_fast.sampler_step.default(
        c.x, c.prediction, c.table, c.step, c.uncond, c.previous, c.previous2, c.noise, c.seed, c.sample_offset,
        c.stream, c.guidance_rescale, c.clip_mode, c.clip, c.clip_max,
    )  # fmt: skip
