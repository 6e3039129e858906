"""Several ranks train the presets as one process does, however they share the model."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.training import scaled
from vdiff_fast.training import CheckpointError, latest_checkpoint, load_checkpoint
from vdiff_fast.training.metrics import read_metrics

ROOT = Path(__file__).parents[2]
MODELS = ("unet-tiny", "dit-tiny")
CASES = [
    "unet-tiny:ddp", "unet-tiny:fsdp:sampled", "unet-tiny:hybrid:checkpointed", "unet-tiny:fsdp:kept:accumulated",
    "unet-tiny:fsdp:saved",
    "dit-tiny:ddp:accumulated", "dit-tiny:fsdp:checkpointed", "dit-tiny:hybrid:saved",
]  # fmt: skip


def torchrun(ranks: int, module: str, *arguments: str) -> str:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}", "-m", module]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every case on two ranks, and each model in one process."""
    folder = tmp_path_factory.mktemp("runs")
    for model in MODELS:
        scaled.train(f"{model}:{scaled.ONE}", folder / model)
    torchrun(2, "tests.training.scaled", str(folder), *CASES)
    return folder


@pytest.mark.parametrize("case", CASES)
def test_two_ranks_train_as_one_process(runs: Path, case: str) -> None:
    one = runs / case.split(":")[0]
    losses = [[row["loss"] for row in read_metrics(run)] for run in (runs / case, one)]
    assert len(losses[0]) == scaled.STEPS
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    saved = []
    for run in (runs / case, one):
        path = latest_checkpoint(run / "checkpoints")
        assert path is not None
        saved.append(load_checkpoint(path))
    for part in ("model", "ema"):
        mine, other = getattr(saved[0], part), getattr(saved[1], part)
        assert mine.keys() == other.keys()
        flat = [torch.cat([t[name].double().flatten() for name in sorted(other)]) for t in (mine, other)]
        assert (flat[0] - flat[1]).norm() <= 1e-4 * flat[1].norm(), part


def halfway(run: Path, target: Path) -> Path:
    """A copy of a run as it was at its first checkpoint."""
    first = run / "checkpoints" / "step_00000002"
    shutil.copytree(first, target / "checkpoints" / first.name)
    return target


def losses(run: Path) -> dict[int, float]:
    return {row["step"]: row["loss"] for row in read_metrics(run)}


def test_a_sharded_checkpoint_goes_on_in_one_process_and_on_three_ranks(runs: Path, tmp_path: Path) -> None:
    sharded = {"unet-tiny:fsdp:saved": "unet-tiny:fsdp:saved", "dit-tiny:hybrid:saved": "dit-tiny:fsdp:saved"}
    for case, again in sharded.items():
        halfway(runs / case, tmp_path / "three" / again)
        scaled.train(again, halfway(runs / case, tmp_path / "one" / again), resume=True)
    torchrun(3, "tests.training.scaled", str(tmp_path / "three"), "--resume", *sharded.values())
    for case, again in sharded.items():
        whole = losses(runs / case)
        for ranks in ("one", "three"):
            assert losses(tmp_path / ranks / again) == pytest.approx({step: whole[step] for step in (3, 4)}, rel=1e-5)


def test_a_checkpoint_of_one_process_goes_on_sharded(runs: Path, tmp_path: Path) -> None:
    case = "unet-tiny:fsdp:saved"
    one = tmp_path / "one"
    scaled.train(case, one, until=2)
    halfway(one, tmp_path / case)
    torchrun(2, "tests.training.scaled", str(tmp_path), "--resume", case)
    whole = losses(runs / case)
    assert losses(tmp_path / case) == pytest.approx({step: whole[step] for step in (3, 4)}, rel=1e-5)


def test_a_damaged_shard_is_named_and_the_checkpoint_before_is_used(runs: Path, tmp_path: Path) -> None:
    case = "unet-tiny:fsdp:saved"
    shutil.copytree(runs / case, tmp_path / "run")
    checkpoints = tmp_path / "run" / "checkpoints"
    broken = sorted((checkpoints / "step_00000004" / "shards").iterdir())[-1]
    content = bytearray(broken.read_bytes())
    content[len(content) // 2] ^= 1
    broken.write_bytes(content)
    with pytest.raises(CheckpointError, match=broken.name):
        load_checkpoint(checkpoints / "step_00000004")
    with pytest.warns(UserWarning, match=rf"{broken.name} is not what was written.*going on from step_00000002"):
        trainer = scaled.train(case, tmp_path / "run", until=3, resume=True)
    assert trainer.step == 3
