"""Churn: every step of a deterministic sampler first goes back to a higher noise level (Karras et al. 2022)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from vdiff_fast.diffusion.schedule import NoiseSchedule
from vdiff_fast.diffusion.spacing import time_of_level


@dataclass(frozen=True)
class Churn:
    """l' = (1 + gamma) l, x' = x + sqrt(l'^2 - l^2) S_noise z before a step from level l = sigma / signal.

    gamma = min(S_churn / steps, sqrt(2) - 1) where S_tmin <= l <= S_tmax, else 0. The level never rises above the
    schedule's highest one, which the model knows; where that is pure noise, not above the one before, for no time
    between the two has a level of its own (a flow's have).

    Attributes:
        s_churn: how much in all steps together; 0 is none. EDM's own: 40 for ImageNet-64, 30 to 80 for CIFAR-10.
        s_tmin, s_tmax: levels between which it is done.
        s_noise: scale of the new noise, slightly above 1 against the loss of detail.

    Raises:
        ValueError: a number outside its range.

    Source: Karras et al. 2022, "Elucidating the Design Space of Diffusion-Based Generative Models", algorithm 2.
    """

    s_churn: float
    s_tmin: float = 0.0
    s_tmax: float = math.inf
    s_noise: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.s_churn < math.inf:
            raise ValueError(f"s_churn must be a number from 0 (none) on, got {self.s_churn}")
        if not 0 <= self.s_tmin < self.s_tmax:
            raise ValueError(
                "churn takes place where s_tmin <= sigma / signal <= s_tmax, so 0 <= s_tmin < s_tmax; "
                f"got {self.s_tmin}, {self.s_tmax}"
            )
        if not 0 < self.s_noise < math.inf:
            raise ValueError(f"s_noise must be above 0 (1 keeps the level exact), got {self.s_noise}")


@dataclass(frozen=True)
class Churned:
    """Where every step starts after its churn, float64 (steps,), and x' = gain x + noise z."""

    times: Tensor
    signal: Tensor
    sigma: Tensor
    gain: Tensor
    noise: Tensor


def churned(
    churn: Churn | None, schedule: NoiseSchedule, times: Tensor, signal: Tensor, sigma: Tensor, *, log_levels: bool
) -> Churned:
    """The starts of the steps at `times`, where the process has `signal` and `sigma`; the same without churn."""
    level = sigma / signal
    raised = level
    if churn is not None:
        gamma = min(churn.s_churn / len(times), math.sqrt(2) - 1)
        inside = (level >= churn.s_tmin) & (level <= churn.s_tmax)
        known = schedule.exact_sigma / schedule.exact_signal
        highest = known[-1] if schedule.kind == "flow" else torch.where(known.isfinite(), known, 0.0).max()
        raised = torch.where(inside, level * (1 + gamma), level).minimum(torch.maximum(highest, level))
    moved = raised > level
    if not bool(moved.any()):
        return Churned(times, signal, sigma, torch.ones_like(level), torch.zeros_like(level))
    assert churn is not None
    wanted = torch.where(moved, raised, 1.0)
    at_level = 1 / (1 + wanted) if schedule.kind == "flow" else (1 + wanted**2).rsqrt()
    new_signal = torch.where(moved, at_level, signal)
    new_sigma = torch.where(moved, wanted * new_signal, sigma)
    added = torch.where(moved, wanted**2 - level**2, 0.0).sqrt()
    return Churned(
        times=torch.where(moved, time_of_level(schedule, wanted, log_levels=log_levels), times),
        signal=new_signal,
        sigma=new_sigma,
        gain=torch.where(moved, new_signal / signal, 1.0),
        noise=new_signal * added * churn.s_noise,
    )
