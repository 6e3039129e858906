"""What damage a file may have, and whether it is made whole, from the command line and the configuration's file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from tests.data.conftest import declare_frames, encode, flip_bytes, numbered
from vdiff_fast.cli.app import app
from vdiff_fast.data import TooManyBadVideosError, demo_clip
from vdiff_fast.training.build import build_dataset
from vdiff_fast.training.config import load_config


def run(*arguments: Any) -> Any:
    return CliRunner().invoke(app, [str(a) for a in arguments])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A sound file, a damaged one, and one that lacks frames."""
    root = tmp_path / "videos"
    root.mkdir()
    encode(root / "a.mp4", numbered(24))
    flip_bytes(demo_clip(), root / "b.mp4", 20, margin=5000)
    declare_frames(encode(root / "c.avi", numbered(24)), 24, 30)
    return root


# The share of damage that is allowed, and how many of the three files are bad.
TOLERANCES = {
    (): 2, ("--max-corrupt", "1"): 1, ("--max-missing", "1"): 1, ("--max-missing", "1", "--max-corrupt", "1"): 0,
}  # fmt: skip


@pytest.mark.parametrize("flags", TOLERANCES)
def test_check_data_and_cache_take_a_tolerance(folder: Path, tmp_path: Path, flags: tuple) -> None:
    bad = TOLERANCES[flags]
    checked = run("check-data", folder, *flags)
    assert f"{bad} of 3 skipped" in checked.output
    assert checked.exit_code == bool(bad)
    cached = run("cache", folder, "--cache-dir", tmp_path / "cache", "--size", "16", "--limit", "1", *flags)
    assert cached.exit_code == 0, cached.output
    assert f"{3 - bad} files" in cached.output


def test_the_configuration_takes_a_tolerance(folder: Path, tmp_path: Path) -> None:
    clips = [f"source: {folder}", "frames: 4", "size: 16"]
    lines = ["data:", *clips, "max_missing: 0.5", "max_corrupt: 1.0", "deinterlace: true"]
    (tmp_path / "run.yaml").write_text("\n  ".join(lines) + "\n")
    config = load_config(tmp_path / "run.yaml")
    dataset = build_dataset(config.data, 0)
    assert [video.name for video in dataset.videos] == ["a.mp4", "b.mp4", "c.avi"]
    assert dataset.spec.deinterlace
    strict = load_config(tmp_path / "run.yaml", {"data.max_corrupt": 0.0})
    with pytest.raises(TooManyBadVideosError, match=r"1 of 3 skipped.*\n.*b\.mp4"):
        build_dataset(strict.data, 0)


def test_train_takes_them_as_flags(folder: Path, tmp_path: Path) -> None:
    small = (
        "--data", folder, "--model", "tests.training.small:SmallNet", "--frames", "3", "--size", "8", "--steps", "1",
        "--batch-size", "2", "--checkpoint-every", "0", "--sample-every", "0",
    )  # fmt: skip
    refused = run("train", *small, "--out", tmp_path / "a")
    assert isinstance(refused.exception, TooManyBadVideosError)
    flags = ("--max-corrupt", "1", "--max-missing", "0.9", "--deinterlace", "--skip-limit", "0.1")
    taken = run("train", *small, "--out", tmp_path / "b", *flags)
    assert taken.exit_code == 0, taken.output
    data = load_config(tmp_path / "b/config.yaml").data
    assert (data.max_corrupt, data.max_missing, data.deinterlace, data.skip_limit) == (1.0, 0.9, True, 0.1)
