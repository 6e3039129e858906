"""Samplers: each is one record whose function writes every step as one linear update.

For any process x_t = signal x0 + sigma z, a step from x is

    x0 = X0_X x + X0_Y y,   x_prev = X x + X0 x0 + Y y + PREVIOUS x0[-1] + PREVIOUS2 x0[-2] + NOISE z,

where y is the network's prediction, x0[-1] and x0[-2] are the estimates of the two steps before, and the capital names
are the columns of the coefficient table (`vdiff_fast.ops.sampler_step.columns`). A sampler's function gives the columns
of x_prev for all steps at once; `sampler_table` adds the columns of x0, which depend on the prediction target alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from vdiff_fast.ops._common.targets import find_target
from vdiff_fast.ops.sampler_step import columns

Update = dict[int, Tensor]
VARIANCES = ("fixed_small", "fixed_large", "learned_range")


@dataclass(frozen=True)
class Rates:
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

    def variances(self) -> tuple[Tensor, Tensor]:
        """The posterior's variance and beta, between which that of p(x_s | x_t) lies; 0 in the step that ends at x0."""
        small = self.added * (self.next_sigma / self.sigma) ** 2
        return small, torch.where(self.next_sigma > 0, self.added, 0.0)


@dataclass(frozen=True)
class SamplerOptions:
    """What a sampler's function may read besides the rates.

    Attributes:
        target: what the network predicts.
        eta: share of DDPM's noise that is added, from 0 (none) to 1 (ancestral sampling).
        variance: "fixed_small" (that of the posterior), "fixed_large" (beta), or "learned_range" (the network's,
            between the two: the loop adds that noise, and NOISE stays 0).
        use_clipped_model_output: take the noise from the clipped x0 rather than from the prediction.
        flow: whether the process is a flow, x = (1 - s) x0 + s z.
    """

    target: str
    eta: float = 0.0
    variance: str = "fixed_small"
    use_clipped_model_output: bool = False
    flow: bool = False

    def chosen(self) -> dict[str, object]:
        """The options that only some samplers read, where they differ from their defaults."""
        of_some = ("eta", "variance", "use_clipped_model_output")
        defaults = SamplerOptions(self.target)
        return {name: getattr(self, name) for name in of_some if getattr(self, name) != getattr(defaults, name)}


@dataclass(frozen=True)
class Sampler:
    """One sampler; `SAMPLERS` lists those that `sample` knows by name, and `sample` takes a record of one's own too.

    Attributes:
        name: how it is asked for.
        update: (rates, options) -> column -> float64 values, a row per call of the model.
        spacing: the times it visits unless told otherwise.
        flow_spacing: the same for a flow, where it differs.
        ends_clean: its last interval ends at the clean video, so linspace and leading spacing leave the first time out.
        fractional_times: whether it may visit times between two steps of a schedule that is no flow.
        calls_per_step: calls of the model per interval; with 2 the rows are step, correction, step, ..., step.
        takes: the names of the options it reads, of "eta", "churn", "variance" and "use_clipped_model_output".
        passes_end: whether the model is told where each step ends, as r.
    """

    name: str
    update: Callable[[Rates, SamplerOptions], Update]
    spacing: str = "leading"
    flow_spacing: str | None = None
    ends_clean: bool = False
    fractional_times: bool = False
    calls_per_step: int = 1
    takes: frozenset[str] = frozenset()
    passes_end: bool = False

    def default_spacing(self, flow: bool) -> str:
        return self.flow_spacing if flow and self.flow_spacing is not None else self.spacing


def _ddpm(rates: Rates, options: SamplerOptions) -> Update:
    """Ho et al. 2020, eq. 7: the posterior of the clean video's neighbour."""
    small, large = rates.variances()
    variances = {"fixed_small": small, "fixed_large": large, "learned_range": torch.zeros_like(small)}
    return {
        columns.X: rates.ratio * (rates.next_sigma / rates.sigma) ** 2,
        columns.X0: rates.next_signal * rates.added / rates.sigma**2,
        columns.NOISE: variances[options.variance].sqrt(),
    }


def _ddim(rates: Rates, options: SamplerOptions) -> Update:
    """Song et al. 2021, eq. 12 and 16; eta = 0 is Euler's step of the probability-flow equation in sigma / signal."""
    std = options.eta * (rates.next_sigma / rates.sigma) * rates.added.sqrt()
    direction = (rates.next_sigma**2 - std**2).clamp(min=0).sqrt()
    if options.use_clipped_model_output:
        from_x, from_x0 = 1 / rates.sigma, -rates.signal / rates.sigma
        return {
            columns.X: direction * from_x,
            columns.X0: rates.next_signal + direction * from_x0,
            columns.NOISE: std,
        }
    from_x, from_y = find_target(options.target).noise_coefficients(rates.signal, rates.sigma)
    return {
        columns.X: direction * from_x,
        columns.X0: rates.next_signal,
        columns.Y: direction * from_y,
        columns.NOISE: std,
    }


def _dpmpp(rates: Rates, stochastic: bool) -> Update:
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


def _dpmpp_2m(rates: Rates, options: SamplerOptions) -> Update:
    return _dpmpp(rates, stochastic=False)


def _dpmpp_2m_sde(rates: Rates, options: SamplerOptions) -> Update:
    return _dpmpp(rates, stochastic=True)


def _unipc(rates: Rates, options: SamplerOptions) -> Update:
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


def _heun(rates: Rates, options: SamplerOptions) -> Update:
    """Karras et al. 2022, algorithm 1: Euler's step to the next level, then the mean of both slopes.

    Along Euler's line the slope (x - x0) / level keeps its value, so the correction is a difference of two x0.
    The level is sigma / signal of x / signal, or a flow's own sigma. Rows: step, correction, step, ..., step.
    """
    level, following, unit = rates.sigma, rates.next_sigma[:-1], torch.ones_like(rates.sigma[1:])
    if not options.flow:
        level, following, unit = level / rates.signal, following / rates.next_signal[:-1], rates.next_signal[:-1]
    if not bool(level.isfinite().all()):
        raise ValueError("heun needs a signal at every time (zero terminal SNR has none): use unipc, dpmpp_2m or ddim")
    steps = _ddim(rates, SamplerOptions("x0", use_clipped_model_output=True))
    calls = 2 * len(level) - 1
    update = {column: torch.zeros(calls, dtype=torch.float64) for column in (*steps, columns.PREVIOUS)}
    for column, values in steps.items():
        update[column][::2] = values
    half = unit * (following - level[:-1]) / (2 * following)
    update[columns.X][1::2] = 1.0
    update[columns.X0][1::2] = -half
    update[columns.PREVIOUS][1::2] = half
    return update


def _mean_flow(rates: Rates, options: SamplerOptions) -> Update:
    """Geng et al. 2025, "Mean Flows", eq. 12: x_r = x_t - (t - r) u, u the mean velocity between the two times.

    Of any process and target: signal_r x0 + sigma_r z. An estimate over an interval is no video, so none is clipped.
    """
    target = find_target(options.target)
    of_x0 = target.x0_coefficients(rates.signal, rates.sigma)
    of_noise = target.noise_coefficients(rates.signal, rates.sigma)
    from_x, from_y = (rates.next_signal * a + rates.next_sigma * b for a, b in zip(of_x0, of_noise))
    return {columns.X: from_x, columns.Y: from_y}


# Where a spacing is named it is the one of diffusers' scheduler of the same name. Heun is that of EDM, whose levels
# bound sigma / signal; a flow bounds it itself.
SAMPLERS = {
    sampler.name: sampler
    for sampler in (
        Sampler("ddpm", _ddpm, takes=frozenset({"variance"})),
        Sampler("ddim", _ddim, takes=frozenset({"eta", "use_clipped_model_output"})),
        Sampler("dpmpp_2m", _dpmpp_2m, spacing="linspace", ends_clean=True),
        Sampler("dpmpp_2m_sde", _dpmpp_2m_sde, spacing="linspace", ends_clean=True),
        Sampler("unipc", _unipc, spacing="linspace", ends_clean=True),
        Sampler(
            "euler", _ddim, spacing="linspace", fractional_times=True,
            takes=frozenset({"eta", "churn", "use_clipped_model_output"}),
        ),
        Sampler(
            "heun", _heun, spacing="edm", flow_spacing="linspace", fractional_times=True, calls_per_step=2,
            takes=frozenset({"churn"}),
        ),
        Sampler("mean_flow", _mean_flow, spacing="trailing", passes_end=True),
    )
}  # fmt: skip


def find_sampler(sampler: str | Sampler) -> Sampler:
    """The record of a name; a record is its own answer.

    Raises:
        ValueError: no sampler has this name.
    """
    if isinstance(sampler, Sampler):
        return sampler
    if sampler not in SAMPLERS:
        raise ValueError(f"unknown sampler {sampler!r}; choose from {', '.join(SAMPLERS)}")
    return SAMPLERS[sampler]


def check_options(sampler: Sampler, options: SamplerOptions, churned: bool) -> None:
    """Raise ValueError for an option outside its range, and for one that this sampler would not read."""
    find_target(options.target)
    if options.variance not in VARIANCES:
        raise ValueError(f"unknown variance {options.variance!r}; choose from {', '.join(VARIANCES)}")
    if not 0 <= options.eta <= 1:
        raise ValueError(f"eta must be within [0, 1] (0 deterministic, 1 as noisy as DDPM), got {options.eta}")
    given = options.chosen() | ({"churn": "churn"} if churned else {})
    for name, value in given.items():
        if name not in sampler.takes:
            readers = " and ".join(other.name for other in SAMPLERS.values() if name in other.takes)
            what = name if name == "churn" else f"{name} {value}"
            raise ValueError(f"{what} is for the samplers {readers}, not {sampler.name}")
    if churned and options.eta:
        raise ValueError(f"eta {options.eta} and churn both put noise back; set one of them")
