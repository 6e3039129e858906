"""x_t = a(t) x0 + b(t) noise (Ho et al. 2020, eq. 4); flow (Liu et al. 2022): a = 1 - s, b = s."""

from __future__ import annotations

import torch
from torch import Tensor

from vdiff_fast.ops._common.schedule import Schedule, coefficients, per_sample
from vdiff_fast.ops.noise import reference as noise_reference


def q_sample(
    x0: Tensor,
    t: Tensor,
    schedule: Schedule,
    *,
    noise: Tensor | None = None,
    seed: int | Tensor | None = None,
    sample_offset: int | Tensor | None = 0,
    stream: int | Tensor | None = 0,
    check_finite: bool = False,
    frame_correlation: float = 0.0,
    correlation_kind: str = "mixed",
) -> Tensor:
    dtype = torch.float64 if x0.dtype == torch.float64 else torch.float32
    signal, noise_scale = coefficients(schedule, t, dtype)
    if noise is None:
        assert seed is not None
        noise = noise_reference.noise(
            x0.shape, seed, sample_offset=sample_offset, stream=stream, dtype=dtype, device=x0.device,
            frame_correlation=frame_correlation, correlation_kind=correlation_kind,
        )  # fmt: skip
    x = x0.to(dtype)
    mixed = per_sample(signal, x) * x + per_sample(noise_scale, x) * noise.to(dtype)
    return mixed.to(x0.dtype)
