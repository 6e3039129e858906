"""Churn against the paper's algorithm in float64 on Gaussian data, and against diffusers' schedulers that have it."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from diffusers import EDMEulerScheduler, EulerDiscreteScheduler
from torch import Tensor

import vdiff_fast as vf
from vdiff_fast.diffusion import Churn, Noise, NoiseSchedule, sample, sampler_table
from vdiff_fast.diffusion.spacing import rates_at, time_of_level

SHAPE = (3, 2, 4, 6, 5)
MEAN, DEVIATION, SEED = 0.3, 0.4, 11
LINEAR, FLOW = NoiseSchedule.linear(), NoiseSchedule.flow()
CHURNS = [Churn(2.5), Churn(40.0), Churn(6.0, s_tmin=0.2, s_tmax=30.0, s_noise=1.007)]


def denoise(x: Tensor, level: Tensor | float) -> Tensor:
    """E[x0 | x0 + level z = x] for x0 ~ N(MEAN, DEVIATION^2)."""
    return (DEVIATION**2 * x + level**2 * MEAN) / (DEVIATION**2 + level**2)


def algorithm_2(levels: list[float], x: Tensor, churn: Churn, z: list[Tensor], highest: float, heun: bool) -> Tensor:
    """Karras et al. 2022, algorithm 2, line by line; levels end with 0. Its line 5 rounds to what the model knows."""
    steps = len(levels) - 1
    for i in range(steps):
        gamma = 0.0
        if churn.s_tmin <= levels[i] <= churn.s_tmax:
            gamma = min(churn.s_churn / steps, math.sqrt(2) - 1)
        raised = min(levels[i] + gamma * levels[i], highest)
        raised = max(raised, levels[i])
        x = x + math.sqrt(raised**2 - levels[i] ** 2) * churn.s_noise * z[i]
        slope = (x - denoise(x, raised)) / raised
        following = x + (levels[i + 1] - raised) * slope
        if heun and levels[i + 1] != 0:
            second = (following - denoise(following, levels[i + 1])) / levels[i + 1]
            following = x + (levels[i + 1] - raised) * (0.5 * slope + 0.5 * second)
        x = following
    return x


def gaussian_model(schedule: NoiseSchedule, target: str, log_levels: bool) -> Any:
    def model(x: Tensor, t: Tensor) -> Tensor:
        signal, sigma = (r[:, None, None, None, None] for r in rates_at(schedule, t.double(), log_levels=log_levels))
        x0 = denoise(x / signal, sigma / signal)
        z = (x - signal * x0) / sigma
        return {"x0": x0, "noise": z, "v": signal * z - sigma * x0, "flow": z - x0}[target]

    return model


def streams(sampler: str, steps: int) -> list[int]:
    """The noise of a step's churn: that of the call before it; of the first step that of a call after the last."""
    calls = 2 * steps - 1 if sampler == "heun" else steps
    return [1 + calls, *(2 * i if sampler == "heun" else i for i in range(1, steps))]


@pytest.mark.parametrize("churn", CHURNS, ids=str)
@pytest.mark.parametrize("target", ["x0", "noise", "v"])
@pytest.mark.parametrize("sampler", ["heun", "euler"])
@pytest.mark.parametrize("spacing", ["karras", "given"])
def test_the_paper_in_float64(spacing: str, sampler: str, target: str, churn: Churn) -> None:
    table = LINEAR.exact_sigma / LINEAR.exact_signal
    options: dict[str, Any] = {"spacing": "karras", "steps": 12}
    ramp = torch.linspace(0, 1, 12, dtype=torch.float64)
    levels = (table[-1] ** (1 / 7) + ramp * (table[0] ** (1 / 7) - table[-1] ** (1 / 7))) ** 7
    if spacing == "given":
        options = {"timesteps": [900, 720, 500, 333, 200, 90, 20]}
        levels = table[options["timesteps"]]
    z = [vf.ops.noise(SHAPE, SEED, stream=s, dtype=torch.float64) for s in streams(sampler, len(levels))]
    first = vf.ops.noise(SHAPE, SEED, dtype=torch.float64) * (1 + levels[0] ** 2).sqrt()
    expected = algorithm_2([*levels.tolist(), 0.0], first, churn, z, float(table[-1]), sampler == "heun")
    model = gaussian_model(LINEAR, target, log_levels=spacing == "karras")
    options |= {"target": target, "churn": churn, "seed": SEED, "dtype": torch.float64}
    actual = sample(model, SHAPE, LINEAR, sampler, **options)
    assert float((actual - expected).norm() / expected.norm()) < 2e-5
    calm = sample(model, SHAPE, LINEAR, sampler, **options | {"churn": None})
    assert float((actual - calm).norm() / calm.norm()) > 1e-3


def test_a_flow_is_churned_in_its_own_scale() -> None:
    """Euler's steps are the same in x and in x / signal, so the paper's loop applies; all noise (s = 1) stays."""
    sigma = torch.linspace(0.95, 0.1, 8, dtype=torch.float64)
    levels, churn = (sigma / (1 - sigma)).tolist(), Churn(3.0)
    z = [vf.ops.noise(SHAPE, SEED, stream=s, dtype=torch.float64) for s in streams("euler", 8)]
    first = vf.ops.noise(SHAPE, SEED, dtype=torch.float64) / (1 - sigma[0])
    expected = algorithm_2([*levels, 0.0], first, churn, z, math.inf, heun=False)
    model = gaussian_model(FLOW, "flow", log_levels=False)
    options: dict[str, Any] = {"target": "flow", "seed": SEED, "dtype": torch.float64, "churn": churn}
    actual = sample(model, SHAPE, FLOW, "euler", timesteps=sigma * 1000 - 1, **options)
    assert float((actual - expected).norm() / expected.norm()) < 2e-5
    assert sampler_table(FLOW, "euler", 8, target="flow", churn=churn).start == (1.0, 0.0)


@pytest.mark.parametrize("sampler", ["heun", "euler"])
def test_the_noise_depends_on_the_seed_and_the_sample_alone(sampler: str) -> None:
    model = gaussian_model(LINEAR, "noise", log_levels=False)
    options: dict[str, Any] = {"timesteps": [800, 500, 200, 50], "churn": Churn(1.0)}
    whole = sample(model, SHAPE, LINEAR, sampler, seed=5, **options)
    parts = [
        sample(model, (n, *SHAPE[1:]), LINEAR, sampler, seed=Noise(5, sample_offset=a), **options)
        for a, n in ((0, 1), (1, 2))
    ]
    assert torch.equal(torch.cat(parts), whole)
    assert not torch.equal(sample(model, SHAPE, LINEAR, sampler, **options | {"seed": 6}), whole)


@pytest.mark.parametrize("churn", CHURNS, ids=str)
@pytest.mark.parametrize("steps", [4, 20])
def test_euler_of_diffusers(steps: int, churn: Churn, monkeypatch: pytest.MonkeyPatch) -> None:
    """diffusers gives the model x before the churn; here both get the same prediction at the same x."""
    theirs = EulerDiscreteScheduler(beta_start=1e-4, beta_end=0.02, timestep_spacing="leading")
    theirs.set_timesteps(steps)
    times = torch.as_tensor(theirs.timesteps).long()
    theirs.sigmas = torch.cat([(LINEAR.exact_sigma / LINEAR.exact_signal)[times], torch.zeros(1)])
    table = sampler_table(LINEAR, "euler", steps, spacing="leading", churn=churn)
    generator = torch.Generator().manual_seed(0)
    draw = lambda: torch.randn(SHAPE, generator=generator, dtype=torch.float64)  # noqa: E731
    z = [draw() for _ in range(steps + 1)]
    level = theirs.sigmas[0]
    expected = draw() * level
    actual = table.start[0] * expected / (1 + level**2).sqrt() + table.start[1] * z[0]
    for i, t in enumerate(theirs.timesteps):
        prediction = draw()
        monkeypatch.setattr("diffusers.schedulers.scheduling_euler_discrete.randn_tensor", lambda *a, i=i, **k: z[i])
        expected = theirs.step(prediction, t, expected, **vars(churn)).prev_sample
        actual, _ = vf.ops.sampler_step(actual, prediction, table.coefficients, i, noise=z[i + 1])
    assert float((actual - expected).norm() / expected.norm()) < 1e-5


@pytest.mark.parametrize("churn", CHURNS, ids=str)
def test_edm_euler_of_diffusers(churn: Churn, monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = EDMEulerScheduler(sigma_min=0.05, sigma_max=80.0)
    theirs.set_timesteps(9)
    levels = theirs.sigmas[:-1].double()
    theirs.is_scale_input_called = True
    times = time_of_level(LINEAR, levels, log_levels=False)
    table = sampler_table(LINEAR, "euler", timesteps=times, target="x0", churn=churn)
    generator = torch.Generator().manual_seed(0)
    draw = lambda: torch.randn(SHAPE, generator=generator, dtype=torch.float64)  # noqa: E731
    z = [draw() for _ in range(10)]
    expected = draw() * levels[0]
    actual = table.start[0] * expected / (1 + levels[0] ** 2).sqrt() + table.start[1] * z[0]
    for i, t in enumerate(theirs.timesteps):
        x0 = draw()
        monkeypatch.setattr("diffusers.schedulers.scheduling_edm_euler.randn_tensor", lambda *a, i=i, **k: z[i])
        reply = theirs.step(x0, t, expected, pred_original_sample=x0, **vars(churn))
        expected = reply.prev_sample
        actual, _ = vf.ops.sampler_step(actual, x0, table.coefficients, i, noise=z[i + 1])
    assert float((actual - expected).norm() / expected.norm()) < 1e-5


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Churn(-1.0), "s_churn must be a number from 0"),
        (lambda: Churn(1.0, s_tmin=3.0, s_tmax=2.0), r"0 <= s_tmin < s_tmax; got 3\.0, 2\.0"),
        (lambda: Churn(1.0, s_noise=0.0), "s_noise must be above 0"),
        (lambda: sampler_table(LINEAR, "ddim", churn=Churn(1.0)), "churn is for the samplers euler and heun, not ddim"),
        (lambda: sampler_table(LINEAR, "euler", eta=1.0, churn=Churn(1.0)), "both put noise back; set one"),
    ],
)
def test_bad_arguments_say_what_would_work(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
