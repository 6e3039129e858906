"""Networks that predict a variance train it by the variational bound, sample with it, and resume."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from vdiff_fast import data
from vdiff_fast.training import Trainer, load_run
from vdiff_fast.training import config as configuration
from vdiff_fast.training.generate import draw_samples

NETWORKS: dict[str, dict[str, Any]] = {
    "dit-tiny": {"depth": 2, "width": 32, "heads": 2},
    "unet-tiny": {
        "channels": [32, 64], "blocks": [1, 1], "head_dim": 32, "spatial_attention": [False, True],
        "temporal_attention": [True, True], "temporal_conv": [True, True],
    },
}  # fmt: skip


def make(run: Path, network: str, *, resume: bool = False, **changes: Any) -> Trainer:
    values = {
        "data.source": "moving-digits", "data.frames": 4, "data.size": 16, "data.digits": 1, "model.name": network,
        "model.changes": NETWORKS[network], "batch_size": 2, "steps": 4, "sample.every": 0, "log.plot_every": 0,
        "diffusion.learned_variance": True, "diffusion.target": "noise", "runtime.precision": "fp32",
        "optimizer.warmup_steps": 0,
    }  # fmt: skip
    return Trainer(configuration.load_config(None, values | changes), run, resume=resume, show_progress=False)


@pytest.mark.parametrize("network", list(NETWORKS))
def test_trains_samples_and_resumes(network: str, tmp_path: Path) -> None:
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    make(whole, network).fit()
    make(halves, network).fit(until=2)
    make(halves, network, resume=True).fit()
    run, other = load_run(whole, device="cpu"), load_run(halves, device="cpu")
    assert all(torch.equal(a, b) for a, b in zip(run.model.state_dict().values(), other.model.state_dict().values()))
    videos = draw_samples(run.model, run.schedule, run.config, 1, sampler="ddpm", steps=3)
    assert videos.shape == (1, 3, 4, 16, 16)
    assert bool(torch.isfinite(videos).all())


@pytest.mark.parametrize("network", list(NETWORKS))
def test_the_bound_trains_the_variance_alone(network: str, tmp_path: Path) -> None:
    """The mean's rows of the last layer have the gradient of the simple loss; the variance's have one of their own."""
    gradients = []
    for weight in (0.0, 0.001):
        trainer = make(tmp_path / str(weight), network, **{"diffusion.variational_weight": weight})
        torch.manual_seed(0)
        for parameter in trainer.model.parameters():  # the last layer begins with zeros
            torch.nn.init.normal_(parameter, std=0.05)
        batch = trainer.objective.prepare(next(iter(trainer.loader)), 0)
        prediction = trainer.objective.predict(trainer.model, batch)
        assert prediction.shape[1] == 6
        (gradient,) = torch.autograd.grad(trainer.objective.loss(prediction, batch), [prediction])
        gradients.append(gradient)
    without, with_bound = gradients
    assert torch.equal(without[:, :3], with_bound[:, :3])
    assert not without[:, 3:].any()
    assert bool(with_bound[:, 3:].any())


def bound_of(trainer: Trainer, batches: int = 8) -> float:
    """The weighted variational bound, averaged over the first batches of the run."""
    total = 0.0
    for number, raw in zip(range(batches), trainer.loader):
        batch = trainer.objective.prepare(raw, 4 * number)
        with torch.no_grad():
            mean, values = trainer.objective.predict(trainer.model, batch).chunk(2, dim=1)
            total += float(trainer.objective._variational(mean, values, batch))
    return total / batches


def test_the_bound_falls(tmp_path: Path) -> None:
    changes = {"steps": 60, "optimizer.lr": 2e-3, "batch_size": 4}
    before = bound_of(make(tmp_path / "before", "dit-tiny", **changes))
    trainer = make(tmp_path / "after", "dit-tiny", **changes)
    trainer.fit()
    assert bound_of(trainer) < 0.8 * before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"diffusion.schedule": "flow", "diffusion.target": "flow"}, "learned_variance.*flow"),
        ({"mean_flow.share": 0.5, "diffusion.schedule": "flow", "diffusion.target": "flow",
          "diffusion.continuous_time": True}, "learned_variance"),
    ],
)  # fmt: skip
def test_needs_a_diffusion(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(configuration.ConfigError, match=message):
        make(tmp_path, "dit-tiny", **changes)


def test_the_bound_of_data_that_are_no_pixels_is_a_density(tmp_path: Path) -> None:
    changes = {"data.values": "any", "diffusion.timesteps": 1, "diffusion.zero_terminal_snr": False}
    trainer = make(tmp_path, "dit-tiny", **changes)
    video = data.to_unit_range(torch.zeros(2, 3, 4, 16, 16, dtype=torch.uint8))
    raw = {"video": video, "file": ["a", "b"], "index": torch.arange(2)}
    batch = trainer.objective.prepare(raw, 0)
    loss = trainer.objective.loss(trainer.objective.predict(trainer.model, batch), batch)
    assert bool(torch.isfinite(loss))
