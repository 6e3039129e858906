"""The sampler of mean velocities: where steps end is told to the model, and every step is one straight line."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch

import vdiff_fast as vf
from tests.models.helpers import small_dit, small_unet

FLOW = vf.diffusion.NoiseSchedule.flow()
SHAPE = (2, 3, 2, 8, 8)


@pytest.mark.parametrize("make", [small_unet, small_dit])
@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("hooked", [False, True], ids=["table", "calls"])
def test_steps_follow_the_mean_velocity(make: Any, steps: int, hooked: bool) -> None:
    """With the modulations of all steps made before, and with a model that has hooks and makes its own."""
    model, labels = make(interval=True, num_classes=3, time_scale=100.0), torch.tensor([0, 2])
    if hooked:
        model.register_forward_hook(lambda *_: None)
    options: dict[str, Any] = {"y": labels, "continuous_time": True, "target": "flow", "guidance": 2.0}
    video = vf.diffusion.sample(model, SHAPE, FLOW, "mean_flow", steps=steps, seed=4, **options)
    x = vf.ops.noise(SHAPE, 4)
    times = torch.linspace(1, 0, steps + 1)
    with torch.no_grad():
        for t, r in itertools.pairwise(times):
            unconditional, u = (model(x, t.expand(2), r=r.expand(2), y=y) for y in (None, labels))
            x = x - (t - r) * (unconditional + 2 * (u - unconditional))
    torch.testing.assert_close(video, x, rtol=1e-4, atol=1e-4)


def test_ends_of_steps() -> None:
    whole = vf.diffusion.sampler_table(FLOW, "mean_flow", 4, target="flow")
    assert whole.timesteps.tolist() == [999, 749, 499, 249]
    assert whole.ends is not None
    assert whole.ends.tolist() == [749, 499, 249, -1]
    assert whole.ends.dtype == torch.int64
    assert vf.diffusion.sampler_table(FLOW, "euler", 4, target="flow").ends is None


def test_a_model_of_mean_velocities_is_a_velocity_where_the_interval_is_empty() -> None:
    model, x, t = small_dit(interval=True), torch.randn(SHAPE), torch.tensor([0.25, 0.5])
    torch.testing.assert_close(model(x, t), model(x, t, r=t))
    assert not torch.equal(model(x, t), model(x, t, r=torch.zeros(2)))


def test_what_does_not_fit_is_refused() -> None:
    x, t = torch.randn(SHAPE), torch.tensor([0.25, 0.5])
    with pytest.raises(ValueError, match="r was given, but the model was built without it; set interval"):
        small_dit()(x, t, r=t)
    with pytest.raises(ValueError, match=r"r must be \(2,\), as t, got \(1,\)"):
        small_dit(interval=True)(x, t, r=t[:1])
