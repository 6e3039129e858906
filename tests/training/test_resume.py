"""A run that is stopped, killed or refused goes on bit for bit, or says why not."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.training.small import Ramps, SmallNet, small_config, small_trainer
from vdiff_fast.training import checkpoint as ckpt
from vdiff_fast.training.metrics import read_metrics
from vdiff_fast.training.resuming import ResumeError
from vdiff_fast.training.trainer import Trainer

ROOT = Path(__file__).parents[2]
VARIANTS = {
    "fp32": {},
    "accumulate": {"optimizer__accumulate": 2},
    "bf16": {"runtime__precision": "bf16"},
    "fp16": {"runtime__precision": "fp16"},
    "workers": {"data__workers": 1},
}


def newest(run: Path) -> ckpt.Checkpoint:
    path = ckpt.latest_checkpoint(run / "checkpoints")
    assert path is not None
    return ckpt.load_checkpoint(path)


def assert_same(a: Any, b: Any) -> None:
    """Nested dictionaries and lists of tensors and plain values, bit for bit."""
    assert type(a) is type(b)
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_same(a[key], b[key])
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b)
        for mine, other in zip(a, b):
            assert_same(mine, other)
    else:
        assert torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


def assert_same_run(a: Path, b: Path) -> None:
    """Weights, averages, optimizer, state and losses, bit for bit."""
    first, second = newest(a), newest(b)
    assert first.state == second.state
    for name in ("model", "ema"):
        mine, other = getattr(first, name), getattr(second, name)
        assert mine.keys() == other.keys()
        for key in mine:
            assert torch.equal(mine[key], other[key]), f"{name} {key}"
    assert_same(first.optimizer, second.optimizer)
    losses = [[(row["step"], row["loss"], row["gradient_norm"]) for row in read_metrics(run)] for run in (a, b)]
    assert losses[0] == losses[1]


@pytest.mark.parametrize("variant", VARIANTS)
def test_ten_and_ten_steps_are_twenty(tmp_path: Path, variant: str) -> None:
    small_trainer(tmp_path / "whole", **VARIANTS[variant]).fit()
    small_trainer(tmp_path / "parts", **VARIANTS[variant]).fit(until=10)
    assert newest(tmp_path / "parts").step == 10
    torch.manual_seed(99)
    small_trainer(tmp_path / "parts", resume=True, **VARIANTS[variant]).fit()
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


def test_the_weights_moved(tmp_path: Path) -> None:
    trainer = small_trainer(tmp_path)
    before = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    trainer.fit()
    assert all(not torch.equal(before[name], p) for name, p in trainer.model.named_parameters())
    rows = read_metrics(tmp_path)
    assert [row["step"] for row in rows] == list(range(1, 21))
    assert sum(r["loss"] for r in rows[-5:]) < sum(r["loss"] for r in rows[:5])
    assert (tmp_path / "loss.png").stat().st_size > 1000


# Where in the write of the second checkpoint the process dies: its n-th flush to the disk.
KILLED = """
import os, signal, sys
from pathlib import Path
from tests.training.small import small_trainer
from vdiff_fast.training import checkpoint

trainer = small_trainer(Path(sys.argv[1]))
trainer.fit(until=9)
sync, count = os.fsync, 0

def dying(handle):
    global count
    count += 1
    if count == int(sys.argv[2]):
        os.kill(os.getpid(), signal.SIGKILL)
    sync(handle)

os.fsync = dying
trainer.fit(until=10)
"""
# Six files and their folder after each, their folder whole, the folder above, the pointer.
FLUSHES = {"in the middle of the files": 5, "before the pointer moves": 15}


@pytest.mark.parametrize("moment", FLUSHES)
def test_killed_while_writing_a_checkpoint(tmp_path: Path, moment: str) -> None:
    run = tmp_path / "killed"
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(run), str(FLUSHES[moment])], cwd=ROOT, capture_output=True, text=True,
        timeout=300,
    )  # fmt: skip
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert any(path.name.startswith(".writing-") for path in (run / "checkpoints").iterdir())
    assert newest(run).step == 9
    small_trainer(run, resume=True).fit()
    small_trainer(tmp_path / "whole").fit()
    assert_same_run(tmp_path / "whole", run)
    assert not any(path.name.startswith(".writing-") for path in (run / "checkpoints").iterdir())


def test_sigterm_saves_and_stops(tmp_path: Path) -> None:
    trainer = small_trainer(tmp_path / "stopped")
    prepare = trainer.objective.prepare

    def terminated_at_step_six(raw: dict, offset: int) -> object:
        if trainer.step == 6:
            os.kill(os.getpid(), signal.SIGTERM)
        return prepare(raw, offset)

    trainer.objective.prepare = terminated_at_step_six
    trainer.fit()
    assert newest(tmp_path / "stopped").step == 7
    small_trainer(tmp_path / "stopped", resume=True).fit()
    small_trainer(tmp_path / "whole").fit()
    assert_same_run(tmp_path / "whole", tmp_path / "stopped")


def test_only_the_newest_checkpoints_stay(tmp_path: Path) -> None:
    small_trainer(tmp_path, checkpoint__every=4, checkpoint__keep=2).fit()
    assert [path.name for path in ckpt.checkpoints(tmp_path / "checkpoints")] == ["step_00000016", "step_00000020"]


def test_a_run_is_not_overwritten(tmp_path: Path) -> None:
    small_trainer(tmp_path).fit(until=2)
    with pytest.raises(ResumeError, match="step_00000002: resume it with --resume, or choose another --out"):
        small_trainer(tmp_path)


def test_another_configuration_needs_force(tmp_path: Path) -> None:
    small_trainer(tmp_path).fit(until=2)
    changed = {"optimizer__lr": 0.5, "batch_size": 3}
    with pytest.raises(ResumeError, match=r"batch_size: 2 saved, 3 now; optimizer\.lr: 0\.01 saved, 0\.5 now.*--force"):
        small_trainer(tmp_path, resume=True, **changed)
    trainer = small_trainer(tmp_path, resume=True, force=True, **changed)
    assert (trainer.step, trainer.samples, trainer.loader.sampler.batch) == (2, 4, 1)
    trainer.fit(until=4)
    assert newest(tmp_path).state["samples"] == 4 + 2 * 3


def test_without_a_configuration_the_saved_one_is_used(tmp_path: Path) -> None:
    small_trainer(tmp_path).fit(until=2)
    trainer = Trainer(None, tmp_path, resume=True, dataset=Ramps(), show_progress=False)
    assert trainer.config == small_config()
    with pytest.raises(ResumeError, match="holds no checkpoint to resume"):
        Trainer(None, tmp_path / "elsewhere", resume=True)


def test_a_checkpoint_of_another_model_is_refused(tmp_path: Path) -> None:
    small_trainer(tmp_path).fit(until=1)
    with pytest.raises(ckpt.CheckpointError, match=r"head\.bias: \(4,\) saved, \(6,\) now"):
        small_trainer(tmp_path, resume=True, force=True, model__changes={"channels": 6})


def test_a_damaged_checkpoint_is_named(tmp_path: Path) -> None:
    small_trainer(tmp_path).fit(until=1)
    (tmp_path / "checkpoints" / "step_00000001" / "ema.safetensors").write_bytes(b"broken")
    with pytest.raises(ckpt.CheckpointError, match=r"ema\.safetensors is not what was written"):
        small_trainer(tmp_path, resume=True)


def test_metrics_of_steps_that_are_repeated_are_removed(tmp_path: Path) -> None:
    small_trainer(tmp_path).fit(until=4)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 5, "loss": 1.0}\n{"step": 6, "lo')
    small_trainer(tmp_path, resume=True).fit(until=6)
    assert [row["step"] for row in read_metrics(tmp_path)] == [1, 2, 3, 4, 5, 6]


def test_shared_tensors_are_saved_apart(tmp_path: Path) -> None:
    shared = torch.arange(6.0).reshape(2, 3)
    model = {"a": shared, "b": shared, "c": shared.t()}
    saved = ckpt.Checkpoint(model, {}, {"optimizer": {}, "scaler": {}}, {"step": 1}, "")
    path = ckpt.save_checkpoint(tmp_path, saved, keep=1)
    loaded = ckpt.load_checkpoint(path).model
    for name, value in model.items():
        assert torch.equal(loaded[name], value)


def test_small_net_drops_out() -> None:
    """The tests above would not see unseeded draws without dropout in the network."""
    net, x, t = SmallNet(), torch.randn(1, 3, 2, 4, 4), torch.tensor([5])
    assert not torch.equal(net(x, t), net(x, t))
