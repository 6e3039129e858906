"""Networks with a learned variance: sampled by their mean or by their own noise, and the bound that trains it."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from diffusers import DDPMScheduler
from torch import Tensor
from torch.distributions import Normal, kl_divergence

import vdiff_fast as vf
from vdiff_fast.diffusion import NoiseSchedule, sample, split_prediction, to_x0
from vdiff_fast.diffusion.learned_variance import step_log_variances, variational_bound
from vdiff_fast.diffusion.samplers import SAMPLERS

SHAPE = (2, 3, 2, 4, 5)
SHORT = NoiseSchedule.linear(20)


def mean_of(x: Tensor, t: Tensor) -> Tensor:
    return torch.tanh(0.4 * x + t.reshape(-1, 1, 1, 1, 1) / 20)


def with_variance(x: Tensor, t: Tensor, **inputs: Tensor) -> Tensor:
    shift = 0.3 * inputs["y"].reshape(-1, 1, 1, 1, 1) if "y" in inputs else 0.0
    return torch.cat([mean_of(x, t) + shift, torch.sin(3 * x) + shift], dim=1)


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_every_sampler_takes_the_mean(sampler: str, guidance: float) -> None:
    options: dict[str, Any] = {"steps": 4, "seed": 3, "y": torch.tensor([0, 1])}
    options["guidance"] = vf.diffusion.Guidance(guidance, uncond={"y": 2}, rescale=0.5)

    def without(x: Tensor, t: Tensor, **inputs: Tensor) -> Tensor:
        return with_variance(x, t, **inputs)[:, :3]

    whole, mean = (sample(model, SHAPE, SHORT, sampler, **options) for model in (with_variance, without))
    assert torch.equal(whole, mean)


@pytest.mark.parametrize("steps", [20, 10])
def test_the_learned_variance_is_that_of_diffusers(steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """With fewer steps beta is that of the longer step, as in the authors' code; diffusers takes a short one's."""
    scheduler = DDPMScheduler(20, variance_type="learned_range", clip_sample=False)
    scheduler.set_timesteps(steps)
    survival = SHORT.exact_signal**2
    scheduler.alphas_cumprod, scheduler.betas = survival, SHORT.betas.double()
    stride = 20 // steps
    for t in scheduler.timesteps.tolist():
        scheduler.betas[t] = 1 - survival[t] / (survival[t - stride] if t >= stride else 1.0)
    box: list[Tensor] = []
    monkeypatch.setattr("diffusers.schedulers.scheduling_ddpm.randn_tensor", lambda *a, **k: box[0])
    x = vf.ops.noise(SHAPE, 5).double()
    for i, t in enumerate(scheduler.timesteps):
        box[:] = [vf.ops.noise(SHAPE, 5, stream=1 + i).double()]
        x = scheduler.step(with_variance(x, t.expand(2)), t, x).prev_sample
    made = sample(with_variance, SHAPE, SHORT, "ddpm", steps=steps, seed=5, variance="learned_range")
    assert float((made.double() - x).norm() / x.norm()) < 1e-5
    assert not torch.equal(made, sample(with_variance, SHAPE, SHORT, "ddpm", steps=steps, seed=5))


def test_the_noise_of_a_sample_does_not_depend_on_the_split() -> None:
    options: dict[str, Any] = {"steps": 5, "variance": "learned_range"}
    whole = sample(with_variance, SHAPE, SHORT, "ddpm", seed=4, **options)
    second = sample(
        with_variance, (1, *SHAPE[1:]), SHORT, "ddpm", seed=vf.diffusion.Noise(4, sample_offset=1), **options
    )
    assert torch.equal(whole[1:], second)


def test_only_twice_the_channels_are_a_variance() -> None:
    x = torch.zeros(2, 3, 4)
    assert split_prediction(x, x)[1] is None
    mean, values = split_prediction(torch.arange(48.0).reshape(2, 6, 4), x)
    assert values is not None
    assert (mean.shape, values.shape, float(values[0, 0, 0])) == (x.shape, x.shape, 12.0)
    assert step_log_variances(torch.tensor([0.5, 0.0]), torch.tensor([0.5, 0.0])).tolist() == [
        [pytest.approx(math.log(0.5)), 0.0], [-math.inf, 0.0]
    ]  # fmt: skip


def bound_inputs(schedule: NoiseSchedule, dtype: torch.dtype = torch.float64) -> tuple[Tensor, ...]:
    t = torch.tensor([0, 1, 7, schedule.timesteps - 2])
    shape = (4, 3, 2, 4, 4)
    generator = torch.Generator().manual_seed(0)
    x0 = (torch.randint(0, 256, shape, generator=generator) / 127.5 - 1).to(dtype)
    x0[:, :, 0, 0, 0], x0[:, :, 0, 0, 1] = -1.0, 1.0  # both edges, where a bin is open
    z = torch.randn(shape, generator=generator, dtype=dtype)
    signal, sigma = (e[t].to(dtype).reshape(-1, 1, 1, 1, 1) for e in (schedule.exact_signal, schedule.exact_sigma))
    x = signal * x0 + sigma * z
    prediction = z + 0.1 * torch.randn(shape, generator=generator, dtype=dtype)
    values = torch.rand(shape, generator=generator, dtype=dtype) * 2 - 1
    return prediction, values, x, x0, t


@pytest.mark.parametrize("bin_width", [2 / 255, None])
@pytest.mark.parametrize("schedule", [NoiseSchedule.linear(), NoiseSchedule.cosine(100), SHORT], ids=str)
def test_the_bound_is_its_definition(schedule: NoiseSchedule, bin_width: float | None) -> None:
    """KL of torch's normals, and -log of the probability of x0's bin, whose outermost are open."""
    prediction, values, x, x0, t = bound_inputs(schedule)
    actual = variational_bound(prediction, values, x, x0, t, schedule, target="noise", bin_width=bin_width)
    rows = {
        name: getattr(schedule, name)[t].double().reshape(-1, 1, 1, 1, 1)
        for name in ("posterior_mean_coef1", "posterior_mean_coef2", "posterior_log_variance_clipped", "betas")
    }
    estimate = to_x0(x, prediction, t, schedule, "noise")
    means = [rows["posterior_mean_coef1"] * v + rows["posterior_mean_coef2"] * x for v in (x0, estimate)]
    share = (values + 1) / 2
    log_variance = share * rows["betas"].log() + (1 - share) * rows["posterior_log_variance_clipped"]
    learned = Normal(means[1], (log_variance / 2).exp())
    terms = kl_divergence(Normal(means[0], (rows["posterior_log_variance_clipped"] / 2).exp()), learned)
    if bin_width is None:
        terms[0] = -learned.log_prob(x0)[0]
    else:
        above = torch.where(x0 > 0.999, torch.ones_like(x0), learned.cdf(x0 + bin_width / 2))
        below = torch.where(x0 < -0.999, torch.zeros_like(x0), learned.cdf(x0 - bin_width / 2))
        terms[0] = -(above - below).log()[0]
    torch.testing.assert_close(actual, terms.flatten(1).mean(1) / math.log(2), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("bin_width", [2 / 255, None])
def test_the_bound_trains_the_variance_alone(bin_width: float | None) -> None:
    prediction, values, x, x0, t = (v.float() if v.is_floating_point() else v for v in bound_inputs(SHORT))
    prediction.requires_grad_(), values.requires_grad_()
    loss = variational_bound(prediction, values, x, x0, t, SHORT, target="noise", bin_width=bin_width).mean()
    loss.backward()
    assert prediction.grad is None
    assert values.grad is not None
    assert values.grad.isfinite().all()
    assert values.grad.abs().max() > 0


@pytest.mark.parametrize("far", [0.5, 40.0])
def test_the_bound_is_finite_far_from_the_data(far: float) -> None:
    """Where a bin's probability is below what float32 holds, its logarithm and gradient are still numbers."""
    _, values, x, x0, t = (v.float() if v.is_floating_point() else v for v in bound_inputs(SHORT))
    prediction, values = torch.full_like(x, far), (values * 0 - 1).requires_grad_()
    loss = variational_bound(prediction, values, x, x0, t, SHORT, target="noise").mean()
    loss.backward()
    assert loss.isfinite()
    assert values.grad is not None
    assert values.grad.isfinite().all()
