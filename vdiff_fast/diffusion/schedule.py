"""Noise schedules: x_t = signal_t x0 + sigma_t z as tables over the training steps."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor

from vdiff_fast._derivatives import values_readable

P = ParamSpec("P")
R = TypeVar("R")


def on_host(function: Callable[P, R]) -> Callable[P, R]:
    """The function with the CPU as torch's default device: tables are made on the host, wherever others are made."""

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        with torch.device("cpu"):
            return function(*args, **kwargs)

    return call


@dataclass(frozen=True, eq=False)
class NoiseSchedule:
    """q(x_t | x0) = N(signal_t x0, sigma_t^2) for t = 0 .. timesteps - 1, as float32 tables on one device.

    Variance preserving: signal_t = sqrt(alphas_cumprod_t), sigma_t = sqrt(1 - alphas_cumprod_t), with alphas_cumprod_t
    the product of 1 - beta_s over s <= t. Flow: signal_t = 1 - s_t, sigma_t = s_t. Both are the Markov chain
    x_t = sqrt(alphas_t) x_{t-1} + sqrt(betas_t) z; betas_t = 1 - alphas_t where variance is preserved.
    Tables are computed in float64 and rounded once, on the CPU whatever torch's default device is; `to` moves them.

    Attributes:
        kind: "variance_preserving" or "flow".
        name: which constructor made it.
        timesteps: number of steps.
        betas, alphas, alphas_cumprod: (timesteps,); alphas_cumprod = signal^2.
        sqrt_alphas_cumprod, sqrt_one_minus_alphas_cumprod: signal and sigma, of either kind.
        snr: (signal_t / sigma_t)^2; 0 at the last step of a zero-terminal-SNR or flow schedule.
        posterior_variance: of q(x_{t-1} | x_t, x0); 0 at t = 0.
        posterior_log_variance_clipped: its logarithm, the value at t = 1 standing in at t = 0.
        posterior_mean_coef1, posterior_mean_coef2: of x0 and of x_t in the mean of q(x_{t-1} | x_t, x0).
        exact_signal, exact_sigma: float64 on the CPU; sampler tables are made from these.
        shift: of a flow schedule, see `flow`; 1 elsewhere.

    Source: Ho et al. 2020, "Denoising Diffusion Probabilistic Models", eq. 2, 4, 6, 7; Lipman et al. 2022, "Flow
    Matching for Generative Modeling".
    """

    kind: str
    name: str
    timesteps: int
    betas: Tensor
    alphas: Tensor
    alphas_cumprod: Tensor
    sqrt_alphas_cumprod: Tensor
    sqrt_one_minus_alphas_cumprod: Tensor
    snr: Tensor
    posterior_variance: Tensor
    posterior_log_variance_clipped: Tensor
    posterior_mean_coef1: Tensor
    posterior_mean_coef2: Tensor
    exact_signal: Tensor
    exact_sigma: Tensor
    shift: float = 1.0

    @classmethod
    @on_host
    def linear(
        cls, steps: int = 1000, beta_start: float = 1e-4, beta_end: float = 0.02, *, zero_terminal_snr: bool = False
    ) -> NoiseSchedule:
        """beta_t from beta_start to beta_end in equal steps (Ho et al. 2020)."""
        _check_betas(steps, beta_start, beta_end)
        betas = torch.linspace(beta_start, beta_end, steps, dtype=torch.float64)
        return _variance_preserving("linear", betas, zero_terminal_snr)

    @classmethod
    @on_host
    def scaled_linear(
        cls, steps: int = 1000, beta_start: float = 0.00085, beta_end: float = 0.012, *, zero_terminal_snr: bool = False
    ) -> NoiseSchedule:
        """sqrt(beta_t) in equal steps (Rombach et al. 2022, latent diffusion)."""
        _check_betas(steps, beta_start, beta_end)
        betas = torch.linspace(beta_start**0.5, beta_end**0.5, steps, dtype=torch.float64) ** 2
        return _variance_preserving("scaled_linear", betas, zero_terminal_snr)

    @classmethod
    @on_host
    def cosine(
        cls, steps: int = 1000, offset: float = 0.008, max_beta: float = 0.999, *, zero_terminal_snr: bool = False
    ) -> NoiseSchedule:
        """alphas_cumprod(u) = cos^2(pi/2 (u + offset) / (1 + offset)), betas <= max_beta (Nichol, Dhariwal 2021)."""
        _check_steps(steps)
        if not 0 < max_beta < 1 or offset < 0:
            raise ValueError(f"cosine schedule: offset {offset} must be >= 0 and max_beta {max_beta} in (0, 1)")
        u = torch.arange(steps + 1, dtype=torch.float64) / steps
        survival = torch.cos((u + offset) / (1 + offset) * (math.pi / 2)) ** 2
        betas = (1 - survival[1:] / survival[:-1]).clamp(max=max_beta)
        return _variance_preserving("cosine", betas, zero_terminal_snr)

    @classmethod
    @on_host
    def flow(cls, steps: int = 1000, shift: float = 1.0) -> NoiseSchedule:
        """s_t = shift u / (1 + (shift - 1) u) with u = (t + 1) / steps: step timesteps - 1 is pure noise.

        `shift` > 1 spends more steps at high noise, for large frames (Esser et al. 2024, eq. 23).
        """
        _check_steps(steps)
        if not shift > 0:
            raise ValueError(f"flow schedule: shift {shift} must be > 0 (1 leaves time as it is)")
        u = torch.arange(1, steps + 1, dtype=torch.float64) / steps
        s = shifted(u, shift)
        return replace(_tables("flow", "flow", signal=1 - s, sigma=s), shift=float(shift))

    @classmethod
    @on_host
    def from_betas(cls, betas: Tensor, *, zero_terminal_snr: bool = False) -> NoiseSchedule:
        """A schedule of one's own betas (steps,), each in (0, 1); the last may be 1, which leaves pure noise."""
        betas = torch.as_tensor(betas).detach().to("cpu", torch.float64)
        inside = (betas > 0) & (betas <= 1)
        if betas.dim() != 1 or not len(betas) or (values_readable(betas) and not bool(inside.all())):
            raise ValueError(f"betas must be a (steps,) tensor of values in (0, 1], got shape {tuple(betas.shape)}")
        return _variance_preserving("custom", betas, zero_terminal_snr)

    @property
    def device(self) -> torch.device:
        return self.betas.device

    def to(self, device: torch.device | str) -> NoiseSchedule:
        """The same schedule with its tables on `device`; itself where they are there already."""
        if torch.device(device) == self.device:
            return self
        moved = {
            f.name: getattr(self, f.name).to(device)
            for f in fields(self)
            if isinstance(getattr(self, f.name), Tensor) and not f.name.startswith("exact_")
        }
        return replace(self, **moved)

    def __repr__(self) -> str:
        return f"NoiseSchedule({self.name!r}, timesteps={self.timesteps}, device={str(self.device)!r})"


def shifted(u: Tensor, shift: float) -> Tensor:
    """s = shift u / (1 + (shift - 1) u): more of [0, 1] at high noise where shift > 1 (Esser et al. 2024, eq. 23)."""
    return shift * u / (1 + (shift - 1) * u)


def _check_steps(steps: int) -> None:
    if not isinstance(steps, int) or steps < 1:
        raise ValueError(f"a schedule has at least one step (an int), got {steps!r}")


def _check_betas(steps: int, beta_start: float, beta_end: float) -> None:
    _check_steps(steps)
    if not 0 < beta_start <= beta_end < 1:
        raise ValueError(f"betas must rise within (0, 1), got beta_start={beta_start}, beta_end={beta_end}")


def _zero_terminal_snr(survival: Tensor) -> Tensor:
    """Shift and scale sqrt(alphas_cumprod) so that it ends at 0 and starts where it did (Lin et al. 2023, alg. 1)."""
    root = survival.sqrt()
    if len(root) == 1:
        raise ValueError("zero_terminal_snr needs at least two steps, this schedule has 1")
    return ((root - root[-1]) * (root[0] / (root[0] - root[-1]))) ** 2


def _variance_preserving(name: str, betas: Tensor, zero_terminal_snr: bool) -> NoiseSchedule:
    survival = torch.cumprod(1 - betas, dim=0)
    if zero_terminal_snr:
        survival = _zero_terminal_snr(survival)
    return _tables("variance_preserving", name, signal=survival.sqrt(), sigma=(1 - survival).sqrt())


def _check_levels(name: str, signal: Tensor, sigma: Tensor) -> None:
    """Every step adds noise, and only the last may end the signal: samplers and posteriors divide by both."""
    if not values_readable(signal):
        return
    before = torch.cat([torch.zeros(1, dtype=torch.float64), sigma[:-1] / signal[:-1]])
    stuck = ~(sigma / signal > before) | (sigma == 0)
    if bool(stuck.any()):
        step = int(stuck.nonzero()[0])
        raise ValueError(
            f"{name} schedule: step {step} of {len(signal)} adds no noise that float64 can tell (signal "
            f"{signal[step]:.3g}, sigma {sigma[step]:.3g}); use "
            + ("larger betas" if signal[step] > 0.5 else "fewer steps or smaller betas, a flow a shift nearer to 1")
        )


def _tables(kind: str, name: str, *, signal: Tensor, sigma: Tensor) -> NoiseSchedule:
    """Every table from the float64 coefficients; x_{-1} = x0 has signal 1 and sigma 0."""
    _check_levels(name, signal, sigma)
    signal_before = torch.cat([torch.ones(1, dtype=torch.float64), signal[:-1]])
    variance_before = torch.cat([torch.zeros(1, dtype=torch.float64), sigma[:-1] ** 2])
    alphas = (signal / signal_before) ** 2
    betas = sigma**2 - alphas * variance_before
    posterior = betas * variance_before / sigma**2
    clipped = torch.cat([posterior[1:2] if len(posterior) > 1 else betas, posterior[1:]])
    tables = {
        "betas": betas,
        "alphas": alphas,
        "alphas_cumprod": signal**2,
        "sqrt_alphas_cumprod": signal,
        "sqrt_one_minus_alphas_cumprod": sigma,
        "snr": (signal / sigma) ** 2,
        "posterior_variance": posterior,
        "posterior_log_variance_clipped": clipped.log(),
        "posterior_mean_coef1": signal_before * betas / sigma**2,
        "posterior_mean_coef2": alphas.sqrt() * variance_before / sigma**2,
    }
    return NoiseSchedule(
        kind=kind,
        name=name,
        timesteps=len(signal),
        exact_signal=signal,
        exact_sigma=sigma,
        **{table: values.float() for table, values in tables.items()},  # type: ignore[arg-type]  # shift is none of them
    )
