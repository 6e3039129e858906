"""Heun between EDM's noise levels: second order on schedules whose last step is all but pure noise."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from vdiff_fast.diffusion import NoiseSchedule, sample, sampler_table
from vdiff_fast.diffusion.spacing import EDM_LEVELS, rates_at

MEAN, DEVIATION, SHAPE = 0.3, 0.4, (2, 3, 4, 6, 5)
COSINE = NoiseSchedule.cosine()


def gaussian_model(x: Tensor, t: Tensor) -> Tensor:
    """The exact x0 prediction for videos of N(MEAN, DEVIATION^2)."""
    signal, sigma = (r[:, None, None, None, None] for r in rates_at(COSINE, t.double(), log_levels=True))
    variance = DEVIATION**2 * signal**2 + sigma**2
    return (DEVIATION**2 * signal * x + sigma**2 * MEAN) / variance


def largest_error(steps: int, **options: Any) -> float:
    """From the end of the probability flow, which is linear in its start for Gaussian videos."""
    start = torch.randn(SHAPE, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    made = sample(gaussian_model, SHAPE, COSINE, "heun", steps=steps, target="x0", latents=start.float(), **options)
    first = sampler_table(COSINE, "heun", steps, target="x0", **options).timesteps[0]
    signal, sigma = (float(r) for r in rates_at(COSINE, first.double().reshape(1), log_levels=True))
    spread = math.sqrt(DEVIATION**2 * signal**2 + sigma**2)
    exact = MEAN + DEVIATION * (start - signal * MEAN) / spread
    return float((made - exact).abs().max())


def test_heun_is_of_second_order_by_default() -> None:
    errors = [largest_error(steps) for steps in (8, 16, 32)]
    assert errors[2] < 0.03
    assert errors[0] > 3 * errors[1] > 9 * errors[2]


def test_other_spacings_show_why() -> None:
    for other in ("trailing", "linspace", "karras"):
        assert largest_error(16, spacing=other) > 5 * largest_error(16)


@pytest.mark.parametrize("zero_terminal_snr", [False, True])
def test_levels_stay_within_the_papers(zero_terminal_snr: bool) -> None:
    schedule = NoiseSchedule.cosine(zero_terminal_snr=zero_terminal_snr)
    times = sampler_table(schedule, "heun", 10, target="x0").timesteps
    signal, sigma = rates_at(schedule, times.double(), log_levels=True)
    assert float((sigma / signal).max()) == pytest.approx(EDM_LEVELS[1], rel=1e-3)
    assert torch.all(times[1:] <= times[:-1])
