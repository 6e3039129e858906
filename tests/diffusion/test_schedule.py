"""Noise schedules against their definitions and diffusers' tables."""

from __future__ import annotations

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler

from vdiff_fast.diffusion import NoiseSchedule
from vdiff_fast.ops._common.schedule import Schedule

SCHEDULES = {
    "linear": NoiseSchedule.linear(),
    "scaled_linear": NoiseSchedule.scaled_linear(),
    "cosine": NoiseSchedule.cosine(),
    "zero_snr": NoiseSchedule.linear(zero_terminal_snr=True),
    "flow": NoiseSchedule.flow(shift=3.0),
    "short": NoiseSchedule.linear(7),
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_tables_are_consistent(name: str) -> None:
    s = SCHEDULES[name]
    assert isinstance(s, Schedule)
    signal, sigma = s.sqrt_alphas_cumprod.double(), s.sqrt_one_minus_alphas_cumprod.double()
    torch.testing.assert_close(s.alphas.double().cumprod(0), s.alphas_cumprod.double(), rtol=2e-4, atol=1e-7)
    torch.testing.assert_close(s.snr.double(), (signal / sigma) ** 2, rtol=1e-5, atol=1e-7)
    total = signal + sigma if s.kind == "flow" else signal**2 + sigma**2
    torch.testing.assert_close(total, torch.ones_like(total), rtol=1e-6, atol=1e-6)
    # One step of the chain from (signal, sigma)_{t-1} lands on (signal, sigma)_t.
    variance = s.alphas.double()[1:] * sigma[:-1] ** 2 + s.betas.double()[1:]
    torch.testing.assert_close(variance, sigma[1:] ** 2, rtol=1e-5, atol=1e-7)
    assert all(getattr(s, field).dtype == torch.float32 for field in ("betas", "snr", "posterior_variance"))


@pytest.mark.parametrize("name", SCHEDULES)
def test_posterior_is_bayes_rule(name: str) -> None:
    """Composing q(x_{t-1} | x_t, x0) with q(x_t | x0) gives back q(x_{t-1} | x0)."""
    s = SCHEDULES[name]
    signal, sigma = s.exact_signal, s.exact_sigma
    c1, c2 = s.posterior_mean_coef1.double()[1:], s.posterior_mean_coef2.double()[1:]
    torch.testing.assert_close(c1 + c2 * signal[1:], signal[:-1], rtol=1e-5, atol=1e-6)
    variance = c2**2 * sigma[1:] ** 2 + s.posterior_variance.double()[1:]
    torch.testing.assert_close(variance, sigma[:-1] ** 2, rtol=1e-5, atol=1e-7)
    assert s.posterior_variance[0] == 0
    assert bool(s.posterior_log_variance_clipped.isfinite().all())


@pytest.mark.parametrize(
    ("ours", "beta_schedule"),
    [(NoiseSchedule.linear(), "linear"), (NoiseSchedule.cosine(), "squaredcos_cap_v2")],
)
def test_betas_are_those_of_diffusers(ours: NoiseSchedule, beta_schedule: str) -> None:
    theirs = DDPMScheduler(beta_schedule=beta_schedule)
    torch.testing.assert_close(ours.betas, theirs.betas, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(ours.alphas_cumprod, theirs.alphas_cumprod, rtol=1e-4, atol=1e-9)


def test_scaled_linear_and_zero_terminal_snr_are_those_of_diffusers() -> None:
    theirs = DDIMScheduler(
        beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, rescale_betas_zero_snr=True
    )
    ours = NoiseSchedule.scaled_linear(zero_terminal_snr=True)
    torch.testing.assert_close(ours.alphas_cumprod, theirs.alphas_cumprod, rtol=1e-4, atol=1e-6)
    assert ours.snr[-1] == 0
    assert ours.alphas_cumprod[-1] == 0


def test_flow_ends_in_pure_noise_and_shift_raises_the_noise() -> None:
    plain, shifted = NoiseSchedule.flow(10), NoiseSchedule.flow(10, shift=3.0)
    torch.testing.assert_close(plain.sqrt_one_minus_alphas_cumprod, torch.arange(1, 11) / 10)
    assert plain.sqrt_alphas_cumprod[-1] == 0
    assert bool((shifted.sqrt_one_minus_alphas_cumprod[:-1] > plain.sqrt_one_minus_alphas_cumprod[:-1]).all())


def test_it_traces_under_compile() -> None:
    @torch.compile(fullgraph=True, backend="aot_eager")
    def signal(schedule: NoiseSchedule, t: torch.Tensor) -> torch.Tensor:
        return schedule.sqrt_alphas_cumprod[t] * schedule.timesteps

    s = NoiseSchedule.linear(10)
    torch.testing.assert_close(signal(s, torch.tensor([3])), s.sqrt_alphas_cumprod[3:4] * 10)


def test_moving_to_the_same_device_is_the_same_object() -> None:
    s = NoiseSchedule.linear(10)
    assert s.to("cpu") is s
    assert s.to("meta").betas.device.type == "meta"
    assert s.to("meta").timesteps == 10


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: NoiseSchedule.linear(0), "at least one step"),
        (lambda: NoiseSchedule.linear(10, 0.5, 0.1), "must rise within"),
        (lambda: NoiseSchedule.cosine(10, offset=-1.0), "offset -1.0"),
        (lambda: NoiseSchedule.flow(10, shift=0.0), "shift 0.0 must be > 0"),
        (lambda: NoiseSchedule.from_betas(torch.ones(2, 3)), r"shape \(2, 3\)"),
        (lambda: NoiseSchedule.linear(1, zero_terminal_snr=True), "at least two steps"),
    ],
)
def test_bad_arguments_raise(make, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        make()
