"""A class keeps its number and its name: whatever becomes of its files, in a resumed run, and when it is asked for."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from vdiff_fast import data
from vdiff_fast.cli.app import app
from vdiff_fast.training import Trainer, load_run
from vdiff_fast.training import config as configuration
from vdiff_fast.training.checkpoint import latest_checkpoint
from vdiff_fast.training.classes import changed_classes, label_number
from vdiff_fast.training.resuming import ResumeError

NAMES = ["ant", "bee", "cat"]


def write_classes(folder: Path, names: list[str] = NAMES) -> Path:
    for number, name in enumerate(names):
        for k in range(2):
            video = torch.full((3, 4, 16, 16), 40 * number + k, dtype=torch.uint8)
            data.write_video(video, folder / name / f"{k}.mp4")
    return folder


def config(folder: Path, **changes: Any) -> configuration.TrainConfig:
    values = {
        "data.source": str(folder), "data.frames": 4, "data.size": 16, "data.labels": True, "data.skip_limit": 0.5,
        "model.name": "dit-tiny", "model.changes": {"depth": 2, "width": 32, "heads": 2}, "batch_size": 2, "steps": 1,
        "sample.every": 0, "checkpoint.every": 0, "log.plot_every": 0, "runtime.precision": "fp32",
    }  # fmt: skip
    return configuration.load_config(None, values | changes)


def test_a_damaged_class_shifts_no_number(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = write_classes(tmp_path)
    whole = data.open_dataset(folder, frames=4, size=16, labels=True)
    for path in (folder / "ant").iterdir():
        path.write_bytes(b"")
    damaged = data.open_dataset(folder, frames=4, size=16, labels=True, skip_limit=0.5)
    assert whole.classes == damaged.classes == NAMES
    assert damaged.num_classes == 3
    assert {item["file"].split("/")[-2]: item["label"] for item in map(damaged.__getitem__, range(len(damaged)))} == {
        "bee": 1,
        "cat": 2,
    }
    assert "no usable video of the class ant" in caplog.text


def test_a_run_keeps_names_and_refuses_permuted_ones(tmp_path: Path) -> None:
    folder, run = write_classes(tmp_path / "clips"), tmp_path / "run"
    Trainer(config(folder), run, show_progress=False).fit()
    assert load_run(run, device="cpu").classes == NAMES
    # As many classes as before: without names the run would go on with other labels.
    (folder / "ant").rename(folder / "zebra")
    with pytest.raises(ResumeError, match=r"0 was 'ant' and is 'bee', 1 was 'bee' and is 'cat'.*their names again"):
        Trainer(config(folder), run, resume=True, show_progress=False)
    (folder / "zebra").rename(folder / "ant")
    Trainer(config(folder), run, resume=True, show_progress=False).fit()


def test_sample_takes_a_name_or_a_number(tmp_path: Path) -> None:
    folder, run = write_classes(tmp_path / "clips"), tmp_path / "run"
    Trainer(config(folder), run, show_progress=False).fit()

    def drawn(label: str) -> bytes:
        out = tmp_path / f"{label}.gif"
        command = ["sample", str(run), "--out", str(out), "--steps", "1", "--label", label, "--device", "cpu"]
        result = CliRunner().invoke(app, command, catch_exceptions=True)
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return out.read_bytes()

    assert drawn("bee") == drawn("1")
    with pytest.raises(ValueError, match="--label dog: this run knows 0 ant, 1 bee, 2 cat"):
        drawn("dog")


def test_what_changed_is_named() -> None:
    assert changed_classes(NAMES, NAMES) == changed_classes(None, NAMES) == ""
    assert changed_classes(NAMES, ["ant", "cat"]) == "3 then, 2 now (gone: 'bee')"
    assert changed_classes(["a"], ["a", "b"]) == "1 then, 2 now (new: 'b')"


def test_a_name_counts_before_a_number() -> None:
    assert label_number("2", 3, ["1", "2", "3"]) == 1
    assert label_number("0", 3, ["1", "2", "3"]) == 0
    for text in ("-1", "3", "x"):
        with pytest.raises(ValueError, match="knows labels 0 to 2"):
            label_number(text, 3, None)
    with pytest.raises(ValueError, match="without labels"):
        label_number("0", None, None)


def test_a_position_among_other_items_is_refused(tmp_path: Path) -> None:
    """As many files under other names: every index would stand for another clip."""
    folder, run = write_classes(tmp_path / "d"), tmp_path / "run"
    Trainer(config(folder), run, show_progress=False).fit()
    moved = tmp_path / "elsewhere"
    before = data.open_dataset(folder, frames=4, size=16).fingerprint
    shutil.copytree(folder, moved)
    assert data.open_dataset(moved, frames=4, size=16).fingerprint == before
    (folder / "bee" / "0.mp4").rename(folder / "bee" / "9.mp4")
    with pytest.raises(
        data.SamplerStateError, match=r"names and order of the items \(fingerprint\): [0-9a-f]{32} saved"
    ):
        Trainer(config(folder), run, resume=True, show_progress=False)
    Trainer(config(folder), run, resume=True, force=True, show_progress=False)
    newest = latest_checkpoint(run / "checkpoints")
    assert newest is not None
    state = json.loads((newest / "state.json").read_text())
    del state["data"]["fingerprint"]
    (newest / "state.json").write_text(json.dumps(state))
    (newest / "checksums.json").unlink()
    Trainer(config(folder), run, resume=True, show_progress=False)  # of an earlier version, which kept none
