"""Calls into the native library."""

from __future__ import annotations

import torch
from torch import Tensor

from vdiff_fast import _library


def fake_q_sample(
    x0: Tensor,
    t: Tensor,
    signal: Tensor,
    noise_scale: Tensor,
    noise: Tensor | None,
    seed: Tensor | None,
    sample_offset: Tensor | None,
    stream: Tensor | None,
) -> Tensor:
    return torch.empty_like(x0)


_library.register_fake("q_sample", fake_q_sample)


def q_sample(
    x0: Tensor,
    t: Tensor,
    signal: Tensor,
    noise_scale: Tensor,
    noise: Tensor | None,
    seed: Tensor | None,
    sample_offset: Tensor | None,
    stream: Tensor | None,
) -> Tensor:
    return torch.ops.vdiff_fast.q_sample.default(x0, t, signal, noise_scale, noise, seed, sample_offset, stream)
