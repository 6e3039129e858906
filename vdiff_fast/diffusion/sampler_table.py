"""Every sampler as rows of one linear update, read by `vf.ops.sampler_step` on the device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from vdiff_fast.diffusion import process
from vdiff_fast.diffusion import spacing as spaced
from vdiff_fast.diffusion.schedule import NoiseSchedule
from vdiff_fast.ops.sampler_step import columns

SAMPLERS = ("ddpm", "ddim", "dpmpp_2m", "dpmpp_2m_sde", "euler")
# What diffusers' scheduler of the same name does unless told otherwise.
DEFAULT_SPACING = {
    "ddpm": "leading",
    "ddim": "leading",
    "dpmpp_2m": "linspace",
    "dpmpp_2m_sde": "linspace",
    "euler": "linspace",
}
VARIANCES = ("fixed_small", "fixed_large")


@dataclass(frozen=True, eq=False)
class SamplerTable:
    """Coefficients and times of a sampling run.

    Attributes:
        sampler: "ddpm", "ddim", "dpmpp_2m", "dpmpp_2m_sde" or "euler".
        coefficients: (steps, 8) float32, the `table` of `vf.ops.sampler_step`.
        timesteps: (steps,), what the model gets as t: int64 where all are whole, else float32.
        guidance: the scale of every step.
        draws_noise, uses_previous: whether any step adds noise, reads the x0 of the step before.
    """

    sampler: str
    coefficients: Tensor
    timesteps: Tensor
    guidance: tuple[float, ...]
    draws_noise: bool
    uses_previous: bool

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
        """Variance that the process adds from s to t."""
        return self.sigma**2 - (self.ratio * self.next_sigma) ** 2


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


def _guidance_of_steps(guidance: float | Sequence[float], steps: int) -> tuple[float, ...]:
    if isinstance(guidance, (int, float)):
        return (float(guidance),) * steps
    scales = tuple(float(scale) for scale in guidance)
    if len(scales) != steps:
        raise ValueError(f"guidance has {len(scales)} scales for {steps} steps; give one number or one per step")
    return scales


def _check(sampler: str, target: str, eta: float, variance: str) -> None:
    if sampler not in SAMPLERS:
        raise ValueError(f"unknown sampler {sampler!r}; choose from {', '.join(SAMPLERS)}")
    process.check_target(target)
    if variance not in VARIANCES:
        raise ValueError(f"unknown variance {variance!r}; choose from {', '.join(VARIANCES)}")
    if not 0 <= eta <= 1:
        raise ValueError(f"eta must be within [0, 1] (0 deterministic, 1 as noisy as DDPM), got {eta}")
    if eta and sampler not in ("ddim", "euler"):
        raise ValueError(f"eta {eta} is for the samplers ddim and euler, not {sampler}")


def sampler_table(
    schedule: NoiseSchedule,
    sampler: str = "ddim",
    steps: int = 50,
    *,
    target: str = "noise",
    eta: float = 0.0,
    spacing: str | None = None,
    timesteps: Sequence[float] | Tensor | None = None,
    guidance: float | Sequence[float] = 1.0,
    variance: str = "fixed_small",
    use_clipped_model_output: bool = False,
) -> SamplerTable:
    """Rows (f, g, a, b, c, d, e, w) of x0 = f x + g y, x_prev = a x + b x0 + c y + d previous + e z, for every step.

    Written for any process x_t = signal x0 + sigma z, so the flow schedule takes every sampler too.

    Args:
        schedule: the noise schedule that the model was trained with.
        sampler: "ddpm", "ddim", "dpmpp_2m" (DPM-Solver++, second order), "dpmpp_2m_sde", "euler".
        steps: how many; not read where `timesteps` is given.
        target: what the model predicts: "noise", "v", "x0", "flow".
        eta: share of DDPM's noise that ddim and euler add: 0 none, 1 ancestral.
        spacing: "leading", "trailing", "linspace", "karras"; by default what diffusers takes for the sampler.
        timesteps: times of one's own instead, falling, within [0, schedule.timesteps - 1].
        guidance: scale of classifier-free guidance, one number or one per step.
        variance: of ddpm: "fixed_small" (the posterior's) or "fixed_large" (beta).
        use_clipped_model_output: ddim and euler take the noise from the clipped x0 rather than from the prediction.

    Raises:
        ValueError: an unknown name, or a number outside its range; the target does not determine x0 at the first step.
    """
    _check(sampler, target, eta, variance)
    chosen = DEFAULT_SPACING[sampler] if spacing is None else spacing
    if timesteps is not None:
        times = spaced.given_times(schedule, timesteps)
    else:
        times = spaced.spaced_times(schedule, steps, chosen, sampler)
    signal, sigma = spaced.rates_at(schedule, times, log_levels=chosen == "karras")
    rates = _Rates(
        signal=signal,
        sigma=sigma,
        next_signal=torch.cat([signal[1:], torch.ones(1, dtype=torch.float64)]),
        next_sigma=torch.cat([sigma[1:], torch.zeros(1, dtype=torch.float64)]),
    )
    if sampler == "ddpm":
        update = _ddpm(rates, variance)
    elif sampler in ("ddim", "euler"):
        update = _ddim(rates, eta, target, use_clipped_model_output)
    else:
        update = _dpmpp_2m(rates, stochastic=sampler == "dpmpp_2m_sde")
    scales = _guidance_of_steps(guidance, len(times))
    x0_x, x0_y = process.x0_coefficients(target, signal, sigma)
    update |= {columns.X0_X: x0_x, columns.X0_Y: x0_y, columns.GUIDANCE: torch.tensor(scales, dtype=torch.float64)}
    rows = torch.zeros(len(times), columns.COLUMNS, dtype=torch.float64)
    for column, values in update.items():
        rows[:, column] = values
    _check_finite(rows, times, target)
    whole = bool((times == times.round()).all())
    return SamplerTable(
        sampler=sampler,
        coefficients=rows.float(),
        timesteps=times.long() if whole else times.float(),
        guidance=scales,
        draws_noise=bool((rows[:, columns.NOISE] != 0).any()),
        uses_previous=bool((rows[:, columns.PREVIOUS] != 0).any()),
    )


def _check_finite(rows: Tensor, times: Tensor, target: str) -> None:
    bad = ~rows.isfinite().all(dim=1)
    if bool(bad.any()):
        time = times[bad][0].item()
        raise ValueError(
            f"target {target!r} does not determine the clean video at time {time:g}, where there is no signal "
            "(zero terminal SNR): use a model with target v, x0 or flow, or a spacing that starts later"
        )
