"""The coefficients and times of a sampling run, read by `vf.ops.sampler_step` on the device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from vdiff_fast.diffusion import _deprecated
from vdiff_fast.diffusion import spacing as spaced
from vdiff_fast.diffusion.churn import Churn, Churned, churned
from vdiff_fast.diffusion.guidance import Guidance, GuidanceScale
from vdiff_fast.diffusion.learned_variance import step_log_variances
from vdiff_fast.diffusion.samplers import Rates, Sampler, SamplerOptions, Update, check_options, find_sampler
from vdiff_fast.diffusion.schedule import NoiseSchedule, on_host
from vdiff_fast.ops._common.targets import find_target
from vdiff_fast.ops.sampler_step import columns


@dataclass(frozen=True, eq=False)
class SamplerTable:
    """Coefficients and times of a sampling run, a row for every call of the model.

    Attributes:
        sampler: the name of the sampler.
        coefficients: (steps, 9) float32, the `table` of `vf.ops.sampler_step`.
        timesteps: (steps,), what the model gets as t: int64 where all are whole, else float32.
        guidance: the scale of every step.
        draws_noise: whether any step adds noise.
        uses_previous, uses_previous2: whether any step reads the x0 of the step before, of two steps before.
        log_variances: (steps, 2), between which a learned variance lies, see `step_log_variances`; None where it is
            fixed.
        ends: (steps,) like timesteps, where each step ends, of a sampler that tells the model so; else None.
        start: (gain, noise) of x = gain x_T + noise z before the first step: its churn, which no step before it makes.
    """

    sampler: str
    coefficients: Tensor
    timesteps: Tensor
    guidance: tuple[float, ...]
    draws_noise: bool
    uses_previous: bool
    uses_previous2: bool = False
    start: tuple[float, float] = (1.0, 0.0)
    log_variances: Tensor | None = None
    ends: Tensor | None = None

    @property
    def steps(self) -> int:
        return len(self.guidance)

    def to(self, device: torch.device | str) -> SamplerTable:
        every = {field.name: getattr(self, field.name) for field in fields(self)}
        moved: dict[str, Any] = {name: value.to(device) for name, value in every.items() if isinstance(value, Tensor)}
        return replace(self, **moved)


@on_host
def sampler_table(
    schedule: NoiseSchedule,
    sampler: str | Sampler = "ddim",
    steps: int = 50,
    *,
    target: str = "noise",
    eta: float = 0.0,
    churn: Churn | None = None,
    spacing: str | None = None,
    timesteps: Sequence[float] | Tensor | None = None,
    guidance: GuidanceScale | Guidance = 1.0,
    steps_offset: int = 0,
    continuous_time: bool = False,
    variance: str = "fixed_small",
    use_clipped_model_output: bool = False,
    **old: Any,
) -> SamplerTable:
    """x0 = X0_X x + X0_Y y, x_prev = X x + X0 x0 + Y y + PREVIOUS x0[-1] + PREVIOUS2 x0[-2] + NOISE z: a row per call.

    Written for any process x_t = signal x0 + sigma z, so the flow schedule takes every sampler too.

    Args:
        schedule: the noise schedule that the model was trained with.
        sampler: "ddpm", "ddim", "dpmpp_2m" (DPM-Solver++, second order), "dpmpp_2m_sde", "unipc" (second order),
            "euler", "heun" (EDM's: 2 steps - 1 calls of the model), "mean_flow" (of a model of mean velocities, one
            step is enough), or a `Sampler` of one's own.
        steps: how many; not read where `timesteps` is given.
        target: what the model predicts: "noise", "v", "x0", "flow".
        eta: share of DDPM's noise that ddim and euler add: 0 none, 1 ancestral.
        churn: noise that euler and heun put back before every step, see `Churn`.
        spacing: "leading", "trailing", "linspace", "karras", "edm"; by default what diffusers takes for the sampler,
            but "edm", its paper's, for heun unless it solves a flow.
        timesteps: times of one's own instead, falling, within [0, schedule.timesteps - 1].
        guidance: the scale of classifier-free guidance, or a whole `Guidance`; the table holds its scale at every step.
        steps_offset: added to the times of leading spacing.
        continuous_time: the model takes a flow's s in [0, 1] as t rather than the step.
        variance: of ddpm: "fixed_small" (the posterior's), "fixed_large" (beta), or "learned_range", which the network
            predicts in as many channels again as x has (Nichol, Dhariwal 2021).
        use_clipped_model_output: ddim and euler take the noise from the clipped x0 rather than from the prediction.

    Raises:
        ValueError: an unknown name, or a number outside its range; an option that the sampler does not read; the target
            does not determine x0 at the first step.
    """
    guided = _deprecated.with_old_guidance("sampler_table", guidance, old)
    _deprecated.refuse_unknown("sampler_table", old)
    chosen, flow = find_sampler(sampler), schedule.kind == "flow"
    options = SamplerOptions(target, eta, variance, use_clipped_model_output, flow)
    check_options(chosen, options, churned=churn is not None)
    if continuous_time and not flow:
        raise ValueError(f"continuous_time is for flow schedules, whose t is s in [0, 1]; this one is {schedule.name}")
    spacing = chosen.default_spacing(flow) if spacing is None else spacing
    if timesteps is not None:
        times = spaced.given_times(schedule, timesteps)
    else:
        times = spaced.spaced_times(schedule, steps, spacing, chosen, steps_offset)
    rates = _rates_of(schedule, times, log_levels=spacing in spaced.LOG_LEVELS)
    starts = churned(churn, schedule, times, rates.signal, rates.sigma, log_levels=spacing in spaced.LOG_LEVELS)
    calls = _Calls.of(chosen, starts, times, rates)
    update = chosen.update(replace(rates, signal=starts.signal, sigma=starts.sigma), options)
    if churn is not None:
        update = _with_churn(update, calls.last_rows, starts)
    scales = torch.tensor(guided.scales(rates.signal, rates.sigma), dtype=torch.float64)[calls.step]
    rows = _rows(update, calls, scales, target)
    _check_finite(rows, calls.times, target)
    shown = calls.sigma if continuous_time else calls.times
    whole = not continuous_time and bool((shown == shown.round()).all())
    return SamplerTable(
        sampler=chosen.name,
        coefficients=rows.float(),
        timesteps=shown.long() if whole else shown.float(),
        guidance=tuple(scales.tolist()),
        draws_noise=variance == "learned_range" or bool((rows[:, columns.NOISE] != 0).any()),
        uses_previous=bool((rows[:, columns.PREVIOUS] != 0).any()),
        uses_previous2=bool((rows[:, columns.PREVIOUS2] != 0).any()),
        start=(float(starts.gain[0]), float(starts.noise[0])),
        log_variances=step_log_variances(*rates.variances()) if variance == "learned_range" else None,
        ends=_ends(rates.sigma if continuous_time else times, calls, continuous_time) if chosen.passes_end else None,
    )


@dataclass(frozen=True)
class _Calls:
    """Where the model is called: at the start of every step, and by a sampler of two calls at its end as well.

    Attributes:
        times, signal, sigma: of every call, float64.
        step: the step that a call belongs to.
        last_rows: the rows that end a step after which another one starts.
    """

    times: Tensor
    signal: Tensor
    sigma: Tensor
    step: Tensor
    last_rows: slice

    @classmethod
    def of(cls, sampler: Sampler, starts: Churned, times: Tensor, rates: Rates) -> _Calls:
        if sampler.calls_per_step == 1:
            return cls(starts.times, starts.signal, starts.sigma, torch.arange(len(times)), slice(0, -1))
        # The last step ends at the clean video, where no second call is made.
        return cls(
            _interleaved(starts.times, times), _interleaved(starts.signal, rates.signal),
            _interleaved(starts.sigma, rates.sigma), torch.arange(1, 2 * len(times)) // 2, slice(1, None, 2),
        )  # fmt: skip


def _ends(times: Tensor, calls: _Calls, continuous_time: bool) -> Tensor:
    """Where the step of every call ends, as the model is told its time; the last at the clean video."""
    clean = torch.full_like(times[:1], 0 if continuous_time else -1)  # step t of a flow has s = (t + 1) / steps
    ends = torch.cat([times[1:], clean])[calls.step]
    whole = not continuous_time and bool((times == times.round()).all())
    return ends.long() if whole else ends.float()


def _rows(update: Update, calls: _Calls, scales: Tensor, target: str) -> Tensor:
    """(calls, COLUMNS) float64."""
    x0_x, x0_y = find_target(target).x0_coefficients(calls.signal, calls.sigma)
    given = update | {columns.X0_X: x0_x, columns.X0_Y: x0_y, columns.GUIDANCE: scales}
    rows = torch.zeros(len(scales), columns.COLUMNS, dtype=torch.float64)
    for column, values in given.items():
        rows[:, column] = values
    return rows


def _interleaved(starts: Tensor, ends: Tensor) -> Tensor:
    """start_0, end_1, start_1, end_2, ...: where Heun calls the model."""
    return torch.stack([starts, ends.roll(-1)], dim=1).flatten()[:-1]


def _rates_of(schedule: NoiseSchedule, times: Tensor, *, log_levels: bool) -> Rates:
    signal, sigma = spaced.rates_at(schedule, times, log_levels=log_levels)
    return Rates(
        signal=signal,
        sigma=sigma,
        next_signal=torch.cat([signal[1:], torch.ones(1, dtype=torch.float64)]),
        next_sigma=torch.cat([sigma[1:], torch.zeros(1, dtype=torch.float64)]),
    )


def _with_churn(update: Update, last_rows: slice, starts: Churned) -> Update:
    """The row that ends a step also brings x to where the next one starts."""
    gain, noise = torch.ones_like(update[columns.X]), torch.zeros_like(update[columns.X])
    gain[last_rows], noise[last_rows] = starts.gain[1:], starts.noise[1:]
    return {column: values * gain for column, values in update.items()} | {columns.NOISE: noise}


def _check_finite(rows: Tensor, times: Tensor, target: str) -> None:
    bad = ~rows.isfinite().all(dim=1)
    if bool(bad.any()):
        time = times[bad][0].item()
        raise ValueError(
            f"target {target!r} does not determine the clean video at time {time:g}, where there is no signal "
            "(zero terminal SNR): use a model with target v, x0 or flow, or a spacing that starts later"
        )
