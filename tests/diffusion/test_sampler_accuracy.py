"""Samplers against the exact answer: for Gaussian data the best model is linear, so the end's moments are known."""

from __future__ import annotations

import pytest
import torch

from vdiff_fast.diffusion import Churn, NoiseSchedule, sampler_table
from vdiff_fast.diffusion.spacing import rates_at
from vdiff_fast.ops._common.targets import TARGETS
from vdiff_fast.ops.sampler_step import columns

MEAN, DEVIATION = 0.3, 0.2
SCHEDULES = [NoiseSchedule.linear(), NoiseSchedule.cosine(), NoiseSchedule.flow()]
SAMPLERS = ("ddpm", "ddim", "euler", "dpmpp_2m", "dpmpp_2m_sde")


def errors(
    schedule: NoiseSchedule, sampler: str, steps: int, target: str = "x0", churn: Churn | None = None
) -> tuple[float, float]:
    """Mean and relative deviation that a sampler ends with, minus those of the data N(MEAN, DEVIATION^2).

    The state (x, x0 of the step before, x0 of two steps before) goes through affine maps, so its mean and covariance
    are followed exactly.
    """
    table = sampler_table(schedule, sampler, steps, target=target, spacing="trailing", churn=churn)
    signal, sigma = rates_at(schedule, table.timesteps.double(), log_levels=False)
    mean = torch.zeros(3, dtype=torch.float64)
    first = table.start[0] ** 2 + table.start[1] ** 2
    covariance = torch.diag(torch.tensor([first, 0.0, 0.0], dtype=torch.float64))
    for a, s, row in zip(signal, sigma, table.coefficients.double()):
        gain = a * DEVIATION**2 / (a**2 * DEVIATION**2 + s**2)
        x0 = torch.stack([gain, MEAN - gain * a * MEAN])  # E[x0 | x] as (slope, intercept)
        z = (torch.tensor([1.0, 0.0]) - a * x0) / s
        y = {"noise": z, "v": a * z - s * x0, "x0": x0, "flow": z - x0}[target]
        own = row[columns.X0_X] * torch.tensor([1.0, 0.0]) + row[columns.X0_Y] * y
        new = row[columns.X] * torch.tensor([1.0, 0.0]) + row[columns.X0] * own + row[columns.Y] * y
        update = torch.zeros(3, 3, dtype=torch.float64)
        update[0] = torch.stack([new[0], row[columns.PREVIOUS], row[columns.PREVIOUS2]])
        update[1, 0], update[2, 1] = own[0], 1.0
        mean = update @ mean + torch.stack([new[1], own[1], 0 * own[1]])
        covariance = update @ covariance @ update.T
        covariance[0, 0] += row[columns.NOISE] ** 2
    return float(mean[0]) - MEAN, float(covariance[0, 0].sqrt()) / DEVIATION - 1


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("target", TARGETS)
def test_samplers_converge_to_the_data(schedule: NoiseSchedule, sampler: str, target: str) -> None:
    """All steps: 2 % for the noisiest sampler on the coarsest schedule, and at least 4 times better than 100 steps."""
    if target == "noise" and schedule.kind == "flow":
        with pytest.raises(ValueError, match="does not determine the clean video"):
            errors(schedule, sampler, 1000, target)
        return
    mean, deviation = errors(schedule, sampler, 1000, target)
    assert abs(mean) < 5e-4  # what is left of the signal at the last step, 0.006 of the linear schedule
    assert abs(deviation) < 0.02
    assert abs(deviation) < abs(errors(schedule, sampler, 100, target)[1]) / 4


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
def test_second_order_is_worth_it(schedule: NoiseSchedule) -> None:
    first_order = abs(errors(schedule, "ddim", 100)[1])
    # Heun's last step is of first order.
    for sampler, gain in (("dpmpp_2m", 4), ("unipc", 4), ("heun", 3)):
        assert abs(errors(schedule, sampler, 100)[1]) < first_order / gain, sampler


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
def test_ddim_and_euler_are_one_step_where_they_visit_the_same_times(schedule: NoiseSchedule) -> None:
    ddim, euler = (sampler_table(schedule, name, 20, target="v", spacing="trailing") for name in ("ddim", "euler"))
    assert torch.equal(ddim.coefficients, euler.coefficients)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
# Euler's error is of first order in the levels that a step crosses, and churn adds to them: at 100 it is 3 %.
@pytest.mark.parametrize(("sampler", "amount"), [("euler", 20.0), ("heun", 20.0), ("heun", 100.0)])
def test_churn_keeps_the_distribution(schedule: NoiseSchedule, sampler: str, amount: float) -> None:
    """The new noise takes the place of the old; with S_noise above 1 there is more of it."""
    mean, deviation = errors(schedule, sampler, 1000, churn=Churn(amount))
    assert abs(mean) < 5e-3
    assert abs(deviation) < (0.02 if sampler == "euler" else 0.005)
    assert errors(schedule, sampler, 1000, churn=Churn(amount, s_noise=1.05))[1] > deviation + 0.01
