"""Every sampler as rows of one linear update, read by `vf.ops.sampler_step` on the device."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from vdiff_fast.diffusion import process
from vdiff_fast.diffusion import spacing as spaced
from vdiff_fast.diffusion.churn import Churn, Churned, churned
from vdiff_fast.diffusion.schedule import NoiseSchedule
from vdiff_fast.ops.sampler_step import columns

SAMPLERS = ("ddpm", "ddim", "dpmpp_2m", "dpmpp_2m_sde", "unipc", "euler", "heun")
# What diffusers' scheduler of the same name does unless told otherwise.
DEFAULT_SPACING = {
    "ddpm": "leading",
    "ddim": "leading",
    "dpmpp_2m": "linspace",
    "dpmpp_2m_sde": "linspace",
    "unipc": "linspace",
    "euler": "linspace",
    "heun": "linspace",
}


def default_spacing(sampler: str, schedule: NoiseSchedule) -> str:
    """That of diffusers' scheduler; of Heun, which is EDM's, the paper's where sigma / signal has no other bound."""
    return "edm" if sampler == "heun" and schedule.kind != "flow" else DEFAULT_SPACING[sampler]


VARIANCES = ("fixed_small", "fixed_large")
Guidance = float | Sequence[float] | Callable[[float], float]


@dataclass(frozen=True, eq=False)
class SamplerTable:
    """Coefficients and times of a sampling run, a row for every call of the model.

    Attributes:
        sampler: one of `SAMPLERS`.
        coefficients: (steps, 9) float32, the `table` of `vf.ops.sampler_step`.
        timesteps: (steps,), what the model gets as t: int64 where all are whole, else float32.
        guidance: the scale of every step.
        draws_noise: whether any step adds noise.
        uses_previous, uses_previous2: whether any step reads the x0 of the step before, of two steps before.
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

    @property
    def steps(self) -> int:
        return len(self.guidance)

    def to(self, device: torch.device | str) -> SamplerTable:
        return replace(self, coefficients=self.coefficients.to(device), timesteps=self.timesteps.to(device))


@dataclass(frozen=True)
class _Rates:
    """signal and sigma at the start (t) and at the end (s) of every step, float64; the last step ends at x0."""

    signal: Tensor
    sigma: Tensor
    next_signal: Tensor
    next_sigma: Tensor

    @property
    def ratio(self) -> Tensor:
        return self.signal / self.next_signal

    @property
    def added(self) -> Tensor:
        """Variance that the process adds from s to t; rounding alone would make it negative."""
        return (self.sigma**2 - (self.ratio * self.next_sigma) ** 2).clamp(min=0)


def _ddpm(rates: _Rates, variance: str) -> dict[int, Tensor]:
    """Ho et al. 2020, eq. 7: the posterior of the clean video's neighbour."""
    small = rates.added * (rates.next_sigma / rates.sigma) ** 2
    large = torch.where(rates.next_sigma > 0, rates.added, 0.0)
    return {
        columns.X: rates.ratio * (rates.next_sigma / rates.sigma) ** 2,
        columns.X0: rates.next_signal * rates.added / rates.sigma**2,
        columns.NOISE: (small if variance == "fixed_small" else large).sqrt(),
    }


def _ddim(rates: _Rates, eta: float, target: str, use_clipped: bool) -> dict[int, Tensor]:
    """Song et al. 2021, eq. 12 and 16; eta = 0 is Euler's step of the probability-flow equation in sigma / signal."""
    std = eta * (rates.next_sigma / rates.sigma) * rates.added.sqrt()
    direction = (rates.next_sigma**2 - std**2).clamp(min=0).sqrt()
    if use_clipped:
        from_x, from_x0 = 1 / rates.sigma, -rates.signal / rates.sigma
        return {
            columns.X: direction * from_x,
            columns.X0: rates.next_signal + direction * from_x0,
            columns.NOISE: std,
        }
    from_x, from_y = process.noise_coefficients(target, rates.signal, rates.sigma)
    return {
        columns.X: direction * from_x,
        columns.X0: rates.next_signal,
        columns.Y: direction * from_y,
        columns.NOISE: std,
    }


def _dpmpp_2m(rates: _Rates, stochastic: bool) -> dict[int, Tensor]:
    """Lu et al. 2022, "DPM-Solver++", algorithm 2 (and its SDE form); the first and last step are of first order."""
    start = (rates.signal / rates.sigma).log()
    end = (rates.next_signal / rates.next_sigma).log()
    h = end - start
    gain = -torch.expm1(-2 * h) if stochastic else -torch.expm1(-h)
    decay = (-h).exp() if stochastic else torch.ones_like(h)
    second = torch.zeros_like(h)
    # (m0 - m1) / r0 / 2 with r0 = h_before / h.
    second[1:-1] = h[1:-1] / h[:-2] / 2
    scale = rates.next_signal * gain
    noise = rates.next_sigma * (-torch.expm1(-2 * h)).sqrt() if stochastic else torch.zeros_like(h)
    return {
        columns.X: rates.next_sigma / rates.sigma * decay,
        columns.X0: scale * (1 + second),
        columns.PREVIOUS: -scale * second,
        columns.NOISE: noise,
    }


def _unipc(rates: _Rates) -> dict[int, Tensor]:
    """Zhao et al. 2023, "UniPC", algorithms 5 and 6 with B_2(h) and x0 as the prediction, order 2.

    The corrector starts from the corrected x of the step before, as the predictor did, so that the corrected x is the
    predicted one plus differences of x0: a step is one update with two x0 before it. The first and last are of order 1.
    """
    # As in diffusers, pure noise counts as a millionth of signal: the second step then has a step before it. Where that
    # would be more than the second step's own signal, as half of it.
    pure = torch.minimum(torch.full_like(rates.signal, 1e-6), rates.next_signal / 2)
    levels = [*(torch.where(rates.signal == 0, pure, rates.signal) / rates.sigma).log().tolist(), math.inf]
    decays, next_signals = (rates.next_sigma / rates.sigma).tolist(), rates.next_signal.tolist()
    signals = rates.signal.tolist()
    steps = len(decays)
    rows = torch.zeros(4, steps, dtype=torch.float64)
    order_before = 0
    for i, (decay, signal) in enumerate(zip(decays, next_signals)):
        gain = -math.expm1(levels[i] - levels[i + 1])
        order = 1 if i in (0, steps - 1) else 2
        own, before = signal * gain, 0.0
        if order == 2:
            weight = signal * gain * 0.5 * _step_ratio(levels, i)
            own, before = own + weight, -weight
        now, last, oldest = _unipc_correction(levels, i, order_before)
        correction = decay * signals[i]
        rows[:, i] = torch.tensor(
            [decay, own + correction * now, before + correction * last, correction * oldest], dtype=torch.float64
        )
        order_before = order
    return dict(zip((columns.X, columns.X0, columns.PREVIOUS, columns.PREVIOUS2), rows))


def _step_ratio(levels: list[float], i: int) -> float:
    """-1 / r = h_i / h_{i-1}."""
    return (levels[i + 1] - levels[i]) / (levels[i] - levels[i - 1])


def _unipc_correction(levels: list[float], i: int, order: int) -> tuple[float, float, float]:
    """What the corrector adds to x at time i over its signal there, as weights of x0 at i, i - 1 and i - 2."""
    if order == 0:
        return 0.0, 0.0, 0.0
    h = levels[i] - levels[i - 1]
    gain = -math.expm1(-h)
    if order == 1:
        return 0.5 * gain, -0.5 * gain, 0.0
    inverse = -_step_ratio(levels, i - 1)  # 1 / r
    first = (-gain / -h - 1) / -gain
    second = 2 * ((-gain / -h - 1) / -h - 0.5) / -gain
    # The two equations rho_0 + rho_1 = first, r rho_0 + rho_1 = second.
    rho_0 = (first - second) * inverse / (inverse - 1)
    older = gain * (rho_0 - 0.5) * inverse
    newest = gain * (first - rho_0)
    return newest, -newest - older, older


def _heun(rates: _Rates, flow: bool) -> dict[int, Tensor]:
    """Karras et al. 2022, algorithm 1: Euler's step to the next level, then the mean of both slopes.

    Along Euler's line the slope (x - x0) / level keeps its value, so the correction is a difference of two x0.
    The level is sigma / signal of x / signal, or a flow's own sigma. Rows: step, correction, step, ..., step.
    """
    level, following, unit = rates.sigma, rates.next_sigma[:-1], torch.ones_like(rates.sigma[1:])
    if not flow:
        level, following, unit = level / rates.signal, following / rates.next_signal[:-1], rates.next_signal[:-1]
    if not bool(level.isfinite().all()):
        raise ValueError("heun needs a signal at every time (zero terminal SNR has none): use unipc, dpmpp_2m or ddim")
    steps = _ddim(rates, 0.0, "x0", use_clipped=True)
    calls = 2 * len(level) - 1
    update = {column: torch.zeros(calls, dtype=torch.float64) for column in (*steps, columns.PREVIOUS)}
    for column, values in steps.items():
        update[column][::2] = values
    half = unit * (following - level[:-1]) / (2 * following)
    update[columns.X][1::2] = 1.0
    update[columns.X0][1::2] = -half
    update[columns.PREVIOUS][1::2] = half
    return update


def _with_churn(update: dict[int, Tensor], last_rows: slice, starts: Churned) -> dict[int, Tensor]:
    """The row that ends a step also brings x to where the next one starts."""
    gain, noise = torch.ones_like(update[columns.X]), torch.zeros_like(update[columns.X])
    gain[last_rows], noise[last_rows] = starts.gain[1:], starts.noise[1:]
    return {column: values * gain for column, values in update.items()} | {columns.NOISE: noise}


def _guidance_of_steps(guidance: Guidance, steps: int) -> tuple[float, ...]:
    if callable(guidance):
        return tuple(float(guidance(i / max(steps - 1, 1))) for i in range(steps))
    if isinstance(guidance, (int, float)):
        return (float(guidance),) * steps
    scales = tuple(float(scale) for scale in guidance)
    if len(scales) != steps:
        raise ValueError(f"guidance has {len(scales)} scales for {steps} steps; give one number or one per step")
    return scales


def _within(scales: tuple[float, ...], interval: tuple[float, float] | None, rates: _Rates) -> tuple[float, ...]:
    """Scale 1 where sigma / signal lies outside the interval."""
    if interval is None:
        return scales
    low, high = interval
    if not 0 <= low < high:
        raise ValueError(
            f"guidance_interval must be (low, high] of sigma / signal with 0 <= low < high, got {interval}"
        )
    levels = (rates.sigma / rates.signal).tolist()
    return tuple(scale if low < level <= high else 1.0 for scale, level in zip(scales, levels))


def _check(sampler: str, target: str, eta: float, variance: str, churn: Churn | None) -> None:
    if sampler not in SAMPLERS:
        raise ValueError(f"unknown sampler {sampler!r}; choose from {', '.join(SAMPLERS)}")
    process.check_target(target)
    if variance not in VARIANCES:
        raise ValueError(f"unknown variance {variance!r}; choose from {', '.join(VARIANCES)}")
    if not 0 <= eta <= 1:
        raise ValueError(f"eta must be within [0, 1] (0 deterministic, 1 as noisy as DDPM), got {eta}")
    if eta and sampler not in ("ddim", "euler"):
        raise ValueError(f"eta {eta} is for the samplers ddim and euler, not {sampler}")
    if churn is not None and sampler not in ("euler", "heun"):
        raise ValueError(f"churn is for the samplers euler and heun, not {sampler}")
    if churn is not None and eta:
        raise ValueError(f"eta {eta} and churn both put noise back; set one of them")


def sampler_table(
    schedule: NoiseSchedule,
    sampler: str = "ddim",
    steps: int = 50,
    *,
    target: str = "noise",
    eta: float = 0.0,
    churn: Churn | None = None,
    spacing: str | None = None,
    timesteps: Sequence[float] | Tensor | None = None,
    guidance: Guidance = 1.0,
    guidance_interval: tuple[float, float] | None = None,
    steps_offset: int = 0,
    continuous_time: bool = False,
    variance: str = "fixed_small",
    use_clipped_model_output: bool = False,
) -> SamplerTable:
    """Rows (f, g, a, b, c, d, e, w, h) of x0 = f x + g y, x_prev = a x + b x0 + c y + d previous + h previous2 + e z.

    Written for any process x_t = signal x0 + sigma z, so the flow schedule takes every sampler too.

    Args:
        schedule: the noise schedule that the model was trained with.
        sampler: "ddpm", "ddim", "dpmpp_2m" (DPM-Solver++, second order), "dpmpp_2m_sde", "unipc" (second order),
            "euler", "heun" (EDM's: 2 steps - 1 calls of the model).
        steps: how many; not read where `timesteps` is given.
        target: what the model predicts: "noise", "v", "x0", "flow".
        eta: share of DDPM's noise that ddim and euler add: 0 none, 1 ancestral.
        churn: noise that euler and heun put back before every step, see `Churn`.
        spacing: "leading", "trailing", "linspace", "karras", "edm"; by default what diffusers takes for the sampler,
            but "edm", its paper's, for heun unless it solves a flow.
        timesteps: times of one's own instead, falling, within [0, schedule.timesteps - 1].
        guidance: scale of classifier-free guidance: one number, one per step, or a function of the share of the
            sampling that is done, from 0 to 1.
        guidance_interval: (low, high]: no guidance where sigma / signal lies outside (Kynkaanniemi et al. 2024).
        steps_offset: added to the times of leading spacing.
        continuous_time: the model takes a flow's s in [0, 1] as t rather than the step.
        variance: of ddpm: "fixed_small" (the posterior's) or "fixed_large" (beta).
        use_clipped_model_output: ddim and euler take the noise from the clipped x0 rather than from the prediction.

    Raises:
        ValueError: an unknown name, or a number outside its range; the target does not determine x0 at the first step.
    """
    _check(sampler, target, eta, variance, churn)
    if continuous_time and schedule.kind != "flow":
        raise ValueError(f"continuous_time is for flow schedules, whose t is s in [0, 1]; this one is {schedule.name}")
    chosen = default_spacing(sampler, schedule) if spacing is None else spacing
    if timesteps is not None:
        times = spaced.given_times(schedule, timesteps)
    else:
        times = spaced.spaced_times(schedule, steps, chosen, sampler, steps_offset)
    rates = _rates_of(schedule, times, log_levels=chosen in spaced.LOG_LEVELS)
    starts = churned(churn, schedule, times, rates.signal, rates.sigma, log_levels=chosen in spaced.LOG_LEVELS)
    scales = _within(_guidance_of_steps(guidance, len(times)), guidance_interval, rates)
    from_start = replace(rates, signal=starts.signal, sigma=starts.sigma)
    update = _update(schedule, sampler, from_start, target, eta, variance, use_clipped_model_output)
    # Heun calls the model at the start and at the end of every step but the last, which has no second call.
    twice = sampler == "heun"
    at = torch.arange(1, 2 * len(times)) // 2 if twice else torch.arange(len(times))
    if churn is not None:
        update = _with_churn(update, slice(1, None, 2) if twice else slice(0, -1), starts)
    times, signal, sigma = (
        _interleaved(start, end) if twice else start
        for start, end in ((starts.times, times), (starts.signal, rates.signal), (starts.sigma, rates.sigma))
    )
    x0_x, x0_y = process.x0_coefficients(target, signal, sigma)
    update |= {columns.X0_X: x0_x, columns.X0_Y: x0_y, columns.GUIDANCE: torch.tensor(scales, dtype=torch.float64)[at]}
    rows = torch.zeros(len(at), columns.COLUMNS, dtype=torch.float64)
    for column, values in update.items():
        rows[:, column] = values
    _check_finite(rows, times, target)
    shown = sigma if continuous_time else times
    whole = not continuous_time and bool((shown == shown.round()).all())
    return SamplerTable(
        sampler=sampler,
        coefficients=rows.float(),
        timesteps=shown.long() if whole else shown.float(),
        guidance=tuple(scales[i] for i in at.tolist()),
        draws_noise=bool((rows[:, columns.NOISE] != 0).any()),
        uses_previous=bool((rows[:, columns.PREVIOUS] != 0).any()),
        uses_previous2=bool((rows[:, columns.PREVIOUS2] != 0).any()),
        start=(float(starts.gain[0]), float(starts.noise[0])),
    )


def _interleaved(starts: Tensor, ends: Tensor) -> Tensor:
    """start_0, end_1, start_1, end_2, ...: where Heun calls the model."""
    return torch.stack([starts, ends.roll(-1)], dim=1).flatten()[:-1]


def _rates_of(schedule: NoiseSchedule, times: Tensor, *, log_levels: bool) -> _Rates:
    signal, sigma = spaced.rates_at(schedule, times, log_levels=log_levels)
    return _Rates(
        signal=signal,
        sigma=sigma,
        next_signal=torch.cat([signal[1:], torch.ones(1, dtype=torch.float64)]),
        next_sigma=torch.cat([sigma[1:], torch.zeros(1, dtype=torch.float64)]),
    )


def _update(
    schedule: NoiseSchedule, sampler: str, rates: _Rates, target: str, eta: float, variance: str, use_clipped: bool
) -> dict[int, Tensor]:
    if sampler == "ddpm":
        return _ddpm(rates, variance)
    if sampler in ("ddim", "euler"):
        return _ddim(rates, eta, target, use_clipped)
    if sampler == "unipc":
        return _unipc(rates)
    if sampler == "heun":
        return _heun(rates, flow=schedule.kind == "flow")
    return _dpmpp_2m(rates, stochastic=sampler == "dpmpp_2m_sde")


def _check_finite(rows: Tensor, times: Tensor, target: str) -> None:
    bad = ~rows.isfinite().all(dim=1)
    if bool(bad.any()):
        time = times[bad][0].item()
        raise ValueError(
            f"target {target!r} does not determine the clean video at time {time:g}, where there is no signal "
            "(zero terminal SNR): use a model with target v, x0 or flow, or a spacing that starts later"
        )
