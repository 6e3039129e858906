"""The forward process: one step at a time against the closed form, and the targets' conversions."""

from __future__ import annotations

import pytest
import torch

import vdiff_fast as vf
from vdiff_fast.diffusion import NoiseSchedule, diffuse_step, to_noise, to_target, to_x0
from vdiff_fast.ops._common.targets import TARGETS

SCHEDULES = [NoiseSchedule.linear(), NoiseSchedule.cosine(), NoiseSchedule.flow()]


@pytest.mark.parametrize("schedule", [NoiseSchedule.linear(40, 1e-3, 0.2), NoiseSchedule.flow(12)], ids=str)
def test_single_steps_equal_the_closed_form_in_distribution(schedule: NoiseSchedule) -> None:
    """Per value of x0: mean, variance and the Kolmogorov-Smirnov distance of 40,000 draws of each."""
    last = schedule.timesteps * 2 // 3
    draws = 40_000
    x0 = torch.tensor([-0.8, 0.0, 1.0]).expand(draws, 3)
    stepped = x0
    for t in range(last + 1):
        z = vf.ops.noise((draws, 3), 11, stream=t)
        stepped = diffuse_step(stepped, torch.full((draws,), t), schedule.alphas, schedule.betas, z)
    closed = vf.ops.q_sample(x0, torch.full((draws,), last), schedule, seed=12)
    # Five standard errors of a mean, and of a variance.
    sigma = float(schedule.sqrt_one_minus_alphas_cumprod[last])
    expected = x0[0] * schedule.sqrt_alphas_cumprod[last]
    for x in (stepped, closed):
        torch.testing.assert_close(x.mean(0), expected, rtol=0, atol=5 * sigma / draws**0.5)
        torch.testing.assert_close(x.var(0), torch.full((3,), sigma**2), rtol=0, atol=5 * sigma**2 * (2 / draws) ** 0.5)
    for column in range(3):
        both = torch.cat([stepped[:, column], closed[:, column]])
        order = both.argsort()
        distance = torch.where(order < draws, 1.0, -1.0).cumsum(0).abs().max() / draws
        assert distance < 1.95 * (2 / draws) ** 0.5  # exceeded once in a thousand pairs of equal distributions


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
@pytest.mark.parametrize("target", TARGETS)
def test_conversions_invert_the_target(schedule: NoiseSchedule, target: str) -> None:
    torch.manual_seed(0)
    x0, z = torch.randn(2, 4, 3, 5, 6, dtype=torch.float64)
    t = torch.tensor([0, 300, 640, 990])
    signal = schedule.sqrt_alphas_cumprod[t].double().reshape(-1, 1, 1, 1)
    sigma = schedule.sqrt_one_minus_alphas_cumprod[t].double().reshape(-1, 1, 1, 1)
    x = signal * x0 + sigma * z
    y = to_target(x0, z, t, schedule, target)
    torch.testing.assert_close(to_x0(x, y, t, schedule, target), x0, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(to_noise(x, y, t, schedule, target), z, rtol=1e-9, atol=1e-9)


def test_v_and_flow_are_their_definitions() -> None:
    x0, z = torch.randn(2, 3, 7)
    t = torch.tensor([5, 500, 999])
    linear, flow = NoiseSchedule.linear(), NoiseSchedule.flow()
    a, s = linear.sqrt_alphas_cumprod[t, None], linear.sqrt_one_minus_alphas_cumprod[t, None]
    torch.testing.assert_close(to_target(x0, z, t, linear, "v"), a * z - s * x0)
    torch.testing.assert_close(to_target(x0, z, t, flow, "flow"), z - x0)


def test_flow_takes_float_times() -> None:
    x0, z = torch.randn(2, 2, 5)
    t, flow = torch.tensor([0.25, 0.5]), NoiseSchedule.flow()
    x = (1 - t[:, None]) * x0 + t[:, None] * z
    torch.testing.assert_close(to_x0(x, z - x0, t, flow, "flow"), x0)
    with pytest.raises(TypeError, match="t must be int64 steps for a variance_preserving schedule"):
        to_x0(x, z, t, NoiseSchedule.linear(), "v")


def test_unknown_target_and_wrong_t_raise() -> None:
    x, schedule = torch.zeros(2, 3), NoiseSchedule.linear(10)
    with pytest.raises(ValueError, match="unknown target 'eps'; choose from noise, v, x0, flow"):
        to_x0(x, x, torch.zeros(2).long(), schedule, "eps")
    with pytest.raises(ValueError, match=r"t must be \(2,\)"):
        to_x0(x, x, torch.zeros(3).long(), schedule, "v")
