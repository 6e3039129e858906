"""VideoDiT through the trainer and the command line."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from vdiff_fast.cli.app import app
from vdiff_fast.models import VideoDiT
from vdiff_fast.training import config as configuration
from vdiff_fast.training.build import build_model
from vdiff_fast.training.metrics import read_metrics

ROOT = Path(__file__).parents[2]


def run(*arguments: object) -> str:
    result = CliRunner().invoke(app, [str(a) for a in arguments])
    assert result.exit_code == 0, result.output
    return result.output


def test_train_resume_sample_and_parity_by_name(tmp_path: Path) -> None:
    out = tmp_path / "run"
    settings = {
        "model.changes": "{width: 48, depth: 2, heads: 3, patch: [1, 4, 4]}", "data.channels": 1, "sample.every": 0,
        "checkpoint.every": 0, "log.every": 1,
    }  # fmt: skip
    overrides = [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
    run(
        "train", "--model", "dit-tiny", "--data", "moving-digits", "--frames", 4, "--size", 16, "--batch-size", 4,
        "--steps", 30, "--lr", "3e-3", "--warmup", 2, "--decay", "constant", "--labels", "--out", out, *overrides,
    )  # fmt: skip
    losses = [row["loss"] for row in read_metrics(out)]
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])
    run("train", "--out", out, "--resume", "--steps", 32)
    assert read_metrics(out)[-1]["step"] == 32
    options = ("--steps", 3, "--num", 2, "--guidance", 2, "--label", 12)
    run("sample", out, "--out", tmp_path / "a.gif", *options)
    assert (tmp_path / "a.gif").stat().st_size > 100
    assert "fused" in run("parity", out, "--rounds", 1)


@pytest.mark.parametrize("recipe", ["moving_digits_dit", "clip_folder_dit"])
def test_recipes_build_their_model(recipe: str) -> None:
    config = configuration.load_config(ROOT / "recipes" / f"{recipe}.yaml")
    with torch.device("meta"):
        model = build_model(config, num_classes=100 if config.data.labels else None)
    assert isinstance(model, VideoDiT)
    assert (model.config.in_channels, model.config.out_channels) == (config.data.channels,) * 2
    assert model.config.gradient_checkpointing is config.runtime.activation_checkpointing
    size = config.data.size
    assert all(n % p == 0 for n, p in zip((config.data.frames, size, size), model.config.patch))
