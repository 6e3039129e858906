"""Which training times a sampler visits, and the coefficients of the process there."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from vdiff_fast.diffusion.schedule import NoiseSchedule

SPACINGS = ("leading", "trailing", "linspace", "karras")
KARRAS_RHO = 7.0


def spaced_times(schedule: NoiseSchedule, steps: int, spacing: str, sampler: str) -> Tensor:
    """Positions in the schedule, falling, float64 (steps,); positions between two steps are allowed.

    leading: i * (timesteps // steps); trailing: from the last step down by timesteps / steps; linspace: from the last
    step to the first, where DPM-Solver++ leaves the first out (its last interval ends at the clean video instead) and
    all but Euler round; karras: (Karras et al. 2022, eq. 5) over sigma / signal.
    """
    total = schedule.timesteps
    if not isinstance(steps, int) or not 1 <= steps <= total:
        raise ValueError(f"steps must be an int within [1, {total}], the schedule's steps; got {steps!r}")
    if spacing == "leading":
        ratio = total // (steps + 1) if sampler.startswith("dpmpp") else total // steps
        first = 1 if sampler.startswith("dpmpp") else 0
        return torch.arange(first, steps + first, dtype=torch.float64).flip(0) * ratio
    if spacing == "trailing":
        return torch.round(total - torch.arange(steps, dtype=torch.float64) * (total / steps)) - 1
    if spacing == "linspace":
        if sampler.startswith("dpmpp"):
            return torch.linspace(0, total - 1, steps + 1, dtype=torch.float64).round().flip(0)[:-1]
        times = torch.linspace(total - 1, 0, steps, dtype=torch.float64)
        return times if sampler == "euler" else times.round()
    if spacing == "karras":
        return _karras_times(schedule, steps)
    raise ValueError(f"unknown spacing {spacing!r}; choose from {', '.join(SPACINGS)}")


def _karras_times(schedule: NoiseSchedule, steps: int) -> Tensor:
    levels = (schedule.exact_sigma / schedule.exact_signal).log()
    if not bool(levels.isfinite().all()):
        raise ValueError(
            f"spacing 'karras' needs a signal at every step, but this {schedule.name} schedule ends in pure noise; "
            "use 'trailing' or 'linspace'"
        )
    inverse = 1 / KARRAS_RHO
    ramp = torch.linspace(0, 1, steps, dtype=torch.float64)
    high, low = levels[-1].exp() ** inverse, levels[0].exp() ** inverse
    return _inverse_interpolation(levels, (high + ramp * (low - high)) ** KARRAS_RHO)


def _inverse_interpolation(log_levels: Tensor, sigma: Tensor) -> Tensor:
    """The fractional position at which log(sigma / signal) takes each value; the table rises."""
    wanted = sigma.log().clamp(log_levels[0], log_levels[-1])
    below = (torch.searchsorted(log_levels, wanted, right=True) - 1).clamp(0, max(len(log_levels) - 2, 0))
    above = (below + 1).clamp(max=len(log_levels) - 1)
    width = (log_levels[above] - log_levels[below]).clamp(min=1e-12)
    return below + (wanted - log_levels[below]) / width


def given_times(schedule: NoiseSchedule, timesteps: Sequence[float] | Tensor) -> Tensor:
    """Times of the caller's own, checked: falling, within the schedule."""
    times = torch.as_tensor(timesteps, dtype=torch.float64).cpu()
    if times.dim() != 1 or not len(times):
        raise ValueError(f"timesteps must be a sequence of times, got shape {tuple(times.shape)}")
    if times.min() < 0 or times.max() > schedule.timesteps - 1:
        raise ValueError(f"timesteps must lie within [0, {schedule.timesteps - 1}], got {times.tolist()}")
    if bool((times[1:] >= times[:-1]).any()):
        raise ValueError(f"timesteps must fall strictly, got {times.tolist()}")
    return times


def rates_at(schedule: NoiseSchedule, times: Tensor, *, log_levels: bool) -> tuple[Tensor, Tensor]:
    """(signal, sigma) float64 at each time. Between two steps: flow interpolates sigma, otherwise sigma / signal
    linearly (as Euler does in diffusers) or its logarithm (Karras levels)."""
    below = times.floor().long()
    above = times.ceil().long()
    share = times - below
    signal, sigma = schedule.exact_signal, schedule.exact_sigma
    if schedule.kind == "flow":
        s = torch.lerp(sigma[below], sigma[above], share)
        return 1 - s, s
    level = sigma / signal
    if log_levels:
        between = torch.lerp(level[below].log(), level[above].log(), share).exp()
    else:
        between = torch.lerp(level[below], level[above], share)
    whole = below == above
    mixed_signal = (1 + between**2).rsqrt()
    return torch.where(whole, signal[below], mixed_signal), torch.where(whole, sigma[below], between * mixed_signal)
