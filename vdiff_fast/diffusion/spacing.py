"""Which training times a sampler visits, and the coefficients of the process there."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from vdiff_fast.diffusion.samplers import Sampler
from vdiff_fast.diffusion.schedule import NoiseSchedule, shifted

SPACINGS = ("leading", "trailing", "linspace", "karras", "edm")
KARRAS_RHO = 7.0
# Karras et al. 2022, table 1. Above 80 a video is nothing but noise, yet Heun's mean of two derivatives over a step
# that starts at a cosine schedule's sigma / signal of 20,000 ruins it.
EDM_LEVELS = (0.002, 80.0)
# Spacings whose times are found between steps by the logarithm of sigma / signal.
LOG_LEVELS = ("karras", "edm")


def spaced_times(schedule: NoiseSchedule, steps: int, spacing: str, sampler: Sampler, offset: int = 0) -> Tensor:
    """Positions in the schedule, falling, float64 (steps,); positions between two steps are allowed.

    leading: offset + i * (timesteps // steps).
    trailing: from the last step down by timesteps / steps; fractional for flow schedules alone.
    linspace: from the last step to the first; fractional for flow schedules and for samplers with `fractional_times`.
    karras: Karras et al. 2022, eq. 5, over sigma / signal; of a flow over s.
    edm: the same within the paper's 0.002 and 80, which schedules of pure noise can take too.

    A sampler that `ends_clean` leaves the first time out of leading and linspace, unless it takes as many steps as the
    schedule has.

    Raises:
        ValueError: an unknown spacing, steps outside the schedule, or fewer different times than steps.
    """
    total = schedule.timesteps
    if not isinstance(steps, int) or not 1 <= steps <= total:
        raise ValueError(f"steps must be an int within [1, {total}], the schedule's steps; got {steps!r}")
    times = _times(schedule, steps, spacing, sampler, offset)
    if bool((times[1:] >= times[:-1]).any()):
        raise ValueError(
            f"spacing {spacing!r} gives {len(times.unique())} different times of this {schedule.name} schedule of "
            f"{total} steps, {steps} were asked for; use fewer, or 'trailing'"
        )
    return times


def _times(schedule: NoiseSchedule, steps: int, spacing: str, sampler: Sampler, offset: int) -> Tensor:
    total, flow = schedule.timesteps, schedule.kind == "flow"
    # Without the first time, as many steps as the schedule has would visit another one twice.
    first = int(sampler.ends_clean and steps < total)
    if spacing == "leading":
        ratio = total // (steps + first)
        times = torch.arange(first, steps + first, dtype=torch.float64).flip(0) * ratio + offset
        if not 0 <= times[-1] <= times[0] <= total - 1:
            raise ValueError(f"steps_offset {offset} moves {steps} steps out of [0, {total - 1}]; use 0 or 1")
        return times
    if spacing == "trailing":
        times = total - torch.arange(steps, dtype=torch.float64) * (total / steps) - 1
        return times if flow else times.round()
    if spacing == "linspace":
        return _linspace(schedule, steps, first, rounded=not flow and not sampler.fractional_times)
    if spacing in LOG_LEVELS:
        return _karras_times(schedule, steps, spacing)
    raise ValueError(f"unknown spacing {spacing!r}; choose from {', '.join(SPACINGS)}")


def _linspace(schedule: NoiseSchedule, steps: int, first: int, rounded: bool) -> Tensor:
    total = schedule.timesteps
    # What diffusers' flow scheduler ends at: it shifts the already shifted smallest noise once more.
    last = total * float(schedule.exact_sigma[0]) - 1 if schedule.kind == "flow" and not first else 0
    times = torch.linspace(total - 1, last, steps + first, dtype=torch.float64)[:steps]
    return times.round() if rounded else times


def _karras_times(schedule: NoiseSchedule, steps: int, spacing: str) -> Tensor:
    flow = schedule.kind == "flow"
    levels = schedule.exact_sigma if flow else schedule.exact_sigma / schedule.exact_signal
    if spacing == "edm" and not flow:
        # Between the last finite level and pure noise there is no level to interpolate.
        levels = levels[levels.isfinite()]
        inside = levels.clamp(*EDM_LEVELS)
        levels = inside if len(levels) and inside[0] < inside[-1] else levels
    if not len(levels) or not bool(levels.isfinite().all()):
        others = "'edm', " if spacing == "karras" else ""
        raise ValueError(
            f"spacing {spacing!r} needs a signal, but this {schedule.name} schedule of {schedule.timesteps} steps ends "
            f"in pure noise; use {others}'trailing' or 'linspace'"
        )
    inverse = 1 / KARRAS_RHO
    ramp = torch.linspace(0, 1, steps, dtype=torch.float64)
    high, low = levels[-1] ** inverse, levels[0] ** inverse
    wanted = (high + ramp * (low - high)) ** KARRAS_RHO
    return time_of_level(schedule, wanted / (1 - wanted) if flow else wanted, log_levels=True)


def time_of_level(schedule: NoiseSchedule, level: Tensor, *, log_levels: bool) -> Tensor:
    """The fractional position at which sigma / signal takes each value: the inverse of `rates_at`."""
    if schedule.kind == "flow":
        s = torch.where(level.isfinite(), level / (1 + level), 1.0)
        times = s / (schedule.shift - (schedule.shift - 1) * s) * schedule.timesteps - 1
        return times.clamp(max=schedule.timesteps - 1)
    levels = schedule.exact_sigma / schedule.exact_signal
    return _inverse_interpolation(levels.log(), level.log()) if log_levels else _inverse_interpolation(levels, level)


def _inverse_interpolation(table: Tensor, wanted: Tensor) -> Tensor:
    """The fractional position at which a rising table takes each value."""
    wanted = wanted.clamp(table[0], table[-1])
    below = (torch.searchsorted(table, wanted, right=True) - 1).clamp(0, max(len(table) - 2, 0))
    above = (below + 1).clamp(max=len(table) - 1)
    width = (table[above] - table[below]).clamp(min=1e-12)
    return below + (wanted - table[below]) / width


def given_times(schedule: NoiseSchedule, timesteps: Sequence[float] | Tensor) -> Tensor:
    """Times of the caller's own, checked: falling, within the schedule."""
    times = torch.as_tensor(timesteps, dtype=torch.float64).cpu()
    if times.dim() != 1 or not len(times):
        raise ValueError(f"timesteps must be a sequence of times, got shape {tuple(times.shape)}")
    if not bool(((times >= 0) & (times <= schedule.timesteps - 1)).all()):
        raise ValueError(f"timesteps must lie within [0, {schedule.timesteps - 1}], got {times.tolist()}")
    if bool((times[1:] >= times[:-1]).any()):
        raise ValueError(f"timesteps must fall strictly, got {times.tolist()}")
    last = schedule.timesteps - 1
    if schedule.kind != "flow" and schedule.exact_signal[-1] == 0 and bool(((times > last - 1) & (times < last)).any()):
        raise ValueError(
            f"between {last - 1} and {last}, pure noise, this {schedule.name} schedule has no noise level to "
            f"interpolate; got {times.tolist()}"
        )
    return times


def rates_at(schedule: NoiseSchedule, times: Tensor, *, log_levels: bool) -> tuple[Tensor, Tensor]:
    """(signal, sigma) float64 at each time. Between two steps: a flow is known everywhere, otherwise sigma /
    signal is interpolated linearly (as Euler does in diffusers) or its logarithm (Karras levels)."""
    if schedule.kind == "flow":
        s = shifted((times + 1) / schedule.timesteps, schedule.shift)
        return 1 - s, s
    below = times.floor().long()
    above = times.ceil().long()
    share = times - below
    signal, sigma = schedule.exact_signal, schedule.exact_sigma
    level = sigma / signal
    if log_levels:
        between = torch.lerp(level[below].log(), level[above].log(), share).exp()
    else:
        between = torch.lerp(level[below], level[above], share)
    whole = below == above
    mixed_signal = (1 + between**2).rsqrt()
    return torch.where(whole, signal[below], mixed_signal), torch.where(whole, sigma[below], between * mixed_signal)
