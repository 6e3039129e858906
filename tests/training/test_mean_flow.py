"""Mean velocities: their target, their times, a run of the recipe, and videos in one step."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import vdiff_fast as vf
from tests.checks import relative_error
from tests.models.helpers import small_dit, small_unet, video
from vdiff_fast.training import config as configuration
from vdiff_fast.training import draws
from vdiff_fast.training.generate import draw_samples, load_run
from vdiff_fast.training.mean_flow import MeanFlowObjective, MeanVelocity, mean_velocity
from vdiff_fast.training.metrics import read_metrics
from vdiff_fast.training.trainer import Trainer

RECIPE = Path(__file__).parents[2] / "recipes" / "meanflow_digits.yaml"
SMALL = {
    "steps": 50, "batch_size": 4, "data.size": 16, "data.frames": 4, "data.digit_size": 10, "sample.every": 0,
    "checkpoint.every": 0, "log.every": 1, "log.plot_every": 0, "optimizer.warmup_steps": 5,
    "model.changes.width": 48, "model.changes.heads": 2, "model.changes.depth": 2,
}  # fmt: skip


@pytest.mark.parametrize("make", [small_unet, small_dit])
def test_the_target_against_finite_differences(make: Any) -> None:
    model = make(interval=True, time_scale=10.0).double()
    x, v = video((2, 3, 2, 8, 8), dtype=torch.float64), video((2, 3, 2, 8, 8), seed=1, dtype=torch.float64)
    r, t = torch.tensor([0.25, 0.5], dtype=torch.float64), torch.tensor([0.75, 0.5], dtype=torch.float64)
    u, target = mean_velocity(model, x, v, r, t, {})
    h = 1e-4
    with torch.no_grad():
        a, b, c, d = (model(x + s * h * v, t + s * h, r=r) for s in (-2, -1, 1, 2))
        assert relative_error(u, model(x, t, r=r)) < 1e-12
    slope = (8 * (c - b) - (d - a)) / (12 * h)
    assert relative_error(target, v - torch.tensor([0.5, 0.0]).view(2, 1, 1, 1, 1) * slope) < 1e-9
    assert torch.equal(target[1], v[1]), "without an interval the target is the velocity itself"
    assert u.requires_grad
    assert not target.requires_grad


def test_the_mean_velocity_to_one_video_is_its_own_target() -> None:
    """Where all data are one video c, the flow is a straight line to it: u = v = (x - c) / t for every r."""
    c, x, t = video(seed=2), video(), torch.tensor([0.3, 0.9])

    def line(x: Tensor, t: Tensor, r: Tensor) -> Tensor:
        return (x - c) / t.view(-1, 1, 1, 1, 1)

    u, target = mean_velocity(line, x, line(x, t, t), torch.tensor([0.1, 0.0]), t, {})
    torch.testing.assert_close(target, u)


def test_times_of_intervals() -> None:
    r, t = draws.intervals(4000, 0.25, seed=5, sample_offset=0)
    assert bool((r <= t).all())
    assert bool(((t > 0) & (t < 1)).all())
    assert abs(float((r < t).float().mean()) - 0.25) < 0.03
    later = draws.intervals(100, 0.25, seed=5, sample_offset=300)
    assert torch.equal(later[0], r[300:400])
    assert torch.equal(later[1], t[300:400])


def test_the_recipe_trains_fifty_steps_and_samples_in_one(tmp_path: Path) -> None:
    config = configuration.load_config(RECIPE, SMALL)
    Trainer(config, tmp_path / "run", show_progress=False).fit()
    losses = [row["loss"] for row in read_metrics(tmp_path / "run")]
    assert len(losses) == 50
    assert all(torch.isfinite(torch.tensor(losses)))
    assert sum(losses[-10:]) < 0.95 * sum(losses[:10])
    run = load_run(tmp_path / "run", ema=False)
    calls = []
    run.model.register_forward_hook(lambda *_: calls.append(1))
    labels = torch.arange(3)
    options: dict[str, Any] = {"sampler": "mean_flow", "steps": 1, "labels": labels, "num_classes": run.num_classes}
    videos = draw_samples(run.model, run.schedule, run.config, 3, seed=1, **options)
    assert len(calls) == 1
    assert videos.shape == (3, 1, 4, 16, 16)
    noise = vf.ops.noise(videos.shape, 1)
    with torch.no_grad():
        wanted = noise - run.model(noise, torch.ones(3), r=torch.zeros(3), y=labels)
    torch.testing.assert_close(videos, wanted)


def test_the_loss_has_the_weighted_gradient_and_the_plain_value() -> None:
    config = configuration.load_config(RECIPE, SMALL)
    objective = MeanFlowObjective(config, vf.diffusion.NoiseSchedule.flow(), torch.device("cpu"), None)
    target, u = video(), video(seed=1).requires_grad_()
    loss = objective.loss(MeanVelocity(u, target), None)  # type: ignore[arg-type]  # of the batch it reads nothing
    torch.testing.assert_close(loss, (u - target).square().mean())
    loss.backward()
    errors = (u - target).detach().square().flatten(1).sum(1)
    wanted = 2 * (u - target).detach() / (len(u) * (errors + 1e-3)).view(-1, 1, 1, 1, 1)
    torch.testing.assert_close(u.grad, wanted)


def test_targets_over_intervals_stay_as_small_as_velocities(tmp_path: Path) -> None:
    """The sinusoids' frequencies multiply du/dt: at 1000, as other flows have them, targets are some ten times as large
    as velocities after a hundred steps, and grow."""
    config = configuration.load_config(RECIPE, SMALL | {"steps": 100, "optimizer.decay": "constant"})
    trainer = Trainer(config, tmp_path / "run", show_progress=False)
    trainer.fit()
    assert trainer.model.config.time_scale == 1
    batch = trainer.objective.prepare(next(iter(trainer.loader)), sample_offset=10_000)
    for share in (0.0, 0.9):
        r = batch.t * (1 - share)
        _, target = trainer.objective.predict(trainer.model, replace(batch, r=r))
        assert float(target.square().mean()) < 4.0, "a velocity, noise of deviation 1 minus a video in [-1, 1]: below 2"


@pytest.mark.parametrize(
    ("key", "value"),
    [("diffusion.schedule", "cosine"), ("diffusion.target", "v"), ("diffusion.continuous_time", False),
     ("diffusion.weighting", "min_snr"), ("runtime.strategy", "fsdp")],
)  # fmt: skip
def test_what_does_not_fit_is_refused(key: str, value: Any) -> None:
    with pytest.raises(configuration.ConfigError, match=f"mean_flow.share 0.25 needs {key}"):
        configuration.load_config(RECIPE, {key: value})
