"""Commands from end to end with a really small model, and errors as one line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

import vdiff_fast as vf
from vdiff_fast import data
from vdiff_fast.cli import main
from vdiff_fast.cli.app import COMMANDS, app
from vdiff_fast.cli.options import TRAIN_FLAGS, parse_settings, parse_size
from vdiff_fast.training import config as configuration
from vdiff_fast.training.checkpoint import latest_checkpoint
from vdiff_fast.training.metrics import read_metrics

ROOT = Path(__file__).parents[2]
SMALL = [
    "--data", "moving-digits", "--model", "tests.training.small:SmallNet", "--frames", "3", "--size", "8",
    "--batch-size", "2", "--checkpoint-every", "0", "--sample-every", "0", "--log-every", "1", "--warmup", "2",
]  # fmt: skip


def run(*arguments: str) -> Any:
    return CliRunner().invoke(app, [str(a) for a in arguments])


def error_line(capsys: pytest.CaptureFixture[str], *arguments: Any) -> str:
    """The one line that a failing command prints."""
    capsys.readouterr()
    assert main([str(a) for a in arguments]) == 1
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    return lines[0]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of four steps with labels and a sample on the way."""
    out = tmp_path_factory.mktemp("runs") / "digits"
    result = run(
        "train", *SMALL, "--out", out, "--steps", "4", "--lr", "1e-3", "--labels", "--sample-every", "2",
        "--set", "sample.steps=2", "--set", "sample.count=2",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    return out


def test_train_leaves_what_it_says(trained: Path) -> None:
    assert latest_checkpoint(trained / "checkpoints") == trained / "checkpoints" / "step_00000004"
    assert [row["step"] for row in read_metrics(trained)] == [1, 2, 3, 4]
    for name in ("samples/step_00000002.gif", "samples/step_00000002.mp4", "samples/step_00000004.png", "loss.png"):
        assert (trained / name).stat().st_size > 100, name
    config = configuration.load_config(trained / "config.yaml")
    assert (config.optimizer.lr, config.data.labels, config.sample.steps) == (1e-3, True, 2)


def test_resume_takes_the_saved_configuration(trained: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    constant = ["--decay", "constant", "--out", str(out)]
    assert run("train", *SMALL, *constant, "--steps", "2").exit_code == 0
    result = run("train", "--out", out, "--resume", "--steps", "3")
    assert result.exit_code == 0, result.output
    assert "from step 2" in result.output
    assert [row["step"] for row in read_metrics(out)] == [1, 2, 3]


def test_sample_writes_what_was_asked(trained: Path, tmp_path: Path) -> None:
    mp4, gif, png = tmp_path / "a.mp4", tmp_path / "a.gif", tmp_path / "a.png"
    few = ["--steps", "2", "--sampler", "ddpm", "--seed", "7"]
    result = run("sample", trained, "--out", mp4, *few, "--num", "3", "--columns", "3", "--upscale", "4", "--fps", "6")
    assert result.exit_code == 0, result.output
    written = data.scan(mp4)
    # Three videos of 32 pixels with rims of 2.
    assert (written.width, written.height, written.decoded) == (3 * 34 + 2, 36, 3)
    assert written.fps == pytest.approx(6)
    assert run("sample", trained, "--out", gif, *few, "--smooth", "1", "--dynamic-range").exit_code == 0
    churned = ["--steps", "2", "--sampler", "heun", "--churn", "1:0.05:50:1.003"]
    assert run("sample", trained, "--out", png, *churned).exit_code == 0
    assert run("sample", trained, "--out", png, *few, "--guidance", "3", "--label", "12").exit_code == 0
    assert run("sample", trained, "--out", gif, *few, "--num", "2", "--no-grid", "--upscale", "10x12").exit_code == 0
    assert {path.name for path in tmp_path.iterdir()} == {"a.mp4", "a.gif", "a.png", "a_0.gif", "a_1.gif"}
    assert (data.scan(tmp_path / "a_1.gif").height, data.scan(tmp_path / "a_1.gif").width) == (10, 12)


def test_the_same_seed_gives_the_same_file(trained: Path, tmp_path: Path) -> None:
    files = {}
    for name, seed in (("a", "7"), ("b", "7"), ("c", "8")):
        path = tmp_path / f"{name}.png"
        assert run("sample", trained, "--out", path, "--steps", "2", "--seed", seed).exit_code == 0
        files[name] = path.read_bytes()
    assert files["a"] == files["b"]
    assert files["a"] != files["c"]


def test_errors_are_one_line(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "x"
    nothing = error_line(capsys, "train", "--data", tmp_path / "nowhere", "--out", out)
    assert "nowhere: no such file or folder" in nothing
    assert "unknown key optimizer.lrate; did you mean optimizer.lr?" in error_line(
        capsys, "train", *SMALL, "--out", out, "--set", "optimizer.lrate=1"
    )
    assert "--out is missing" in error_line(capsys, "train", *SMALL)
    assert "unknown preset 'huge'" in error_line(capsys, "train", *SMALL[:2], "--model", "unet-huge", "--out", out)
    assert "unknown model 'gan-tiny'" in error_line(capsys, "train", *SMALL[:2], "--model", "gan-tiny", "--out", out)
    assert "resume it with --resume" in error_line(capsys, "train", *SMALL, "--out", trained)
    assert "optimizer.lr: 0.001 saved, 0.5 now" in error_line(
        capsys, "train", "--out", trained, "--resume", "--lr", "0.5"
    )
    line = error_line(capsys, "sample", tmp_path, "--out", tmp_path / "a.gif")
    assert line.endswith("no checkpoint (there are: none); give the folder that vdiff-fast train --out made")
    line = error_line(capsys, "sample", trained, "--out", tmp_path / "a.gif", "--checkpoint", "0")
    assert "no checkpoint of step 0 (there are: step_" in line
    line = error_line(capsys, "sample", trained, "--out", tmp_path / "a.gif", "--device", "gpu")
    assert "device 'gpu': there is no such kind; give auto, cpu, cuda or cuda:1" in line
    assert "cannot write .avi" in error_line(capsys, "sample", trained, "--out", tmp_path / "a.avi")
    line = error_line(capsys, "sample", trained, "--out", tmp_path / "a.gif", "--churn", "1:2")
    assert "--churn '1:2': give S_CHURN, S_CHURN:S_TMIN:S_TMAX or all four" in line
    assert "labels 0 to 99" in error_line(capsys, "sample", trained, "--out", tmp_path / "a.gif", "--label", "100")
    assert "give the folder of a run, or --model" in error_line(capsys, "parity")
    assert "no such file" in error_line(capsys, "check-data", tmp_path / "nowhere")


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--out is missing"):
        main(["train", *SMALL, "--debug"])


def test_wrong_usage_exits_with_two(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--no-such-flag"]) == 2
    assert "--no-such-flag" in capsys.readouterr().err


def test_every_command_has_help() -> None:
    for name, _, _ in COMMANDS:
        result = run(name, "--help")
        assert result.exit_code == 0, name
    listed = run("--help").output
    assert all(name in listed for name, _, _ in COMMANDS)


def test_every_flag_is_a_key() -> None:
    keys = dict(configuration.fields())
    assert set(TRAIN_FLAGS.values()) <= set(keys)
    shown = run("train", "--keys").output
    assert all(key in shown for key in keys)


def test_check_data_and_cache(tmp_path: Path) -> None:
    clips = tmp_path / "clips"
    clips.mkdir()
    for i in range(2):
        data.write_video(torch.rand(3, 6, 16, 16) * 2 - 1, clips / f"{i}.mp4")
    report = tmp_path / "report.json"
    result = run("check-data", clips, "--frames", "6", "--json", report)
    assert result.exit_code == 0, result.output
    assert "2 files, 2 usable" in result.output
    assert json.loads(report.read_text())["ok"] is True
    assert run("check-data", clips, "--frames", "7").exit_code == 1
    (clips / "broken.mp4").write_bytes(b"no video")
    assert run("check-data", clips).exit_code == 1
    result = run("cache", clips, "--cache-dir", tmp_path / "cache", "--frames", "4", "--size", "8", "--limit", "0.5")
    assert result.exit_code == 0, result.output
    assert "2 files" in result.output
    assert len(list((tmp_path / "cache").glob("*.npy"))) == 2


def test_parity_of_a_run(trained: Path) -> None:
    result = run("parity", trained, "--rounds", "1")
    assert result.exit_code == 0, result.output
    assert "training step, ms" in result.output
    assert "largest difference" in result.output


def test_sizes_and_settings() -> None:
    assert parse_size("64") == 64
    assert parse_size("48x64") == (48, 64)
    with pytest.raises(ValueError, match="give one number from 1 on, or height x width"):
        parse_size("4x5x6")
    assert parse_settings(["a.b=1e-3", "c=[1, 2]", "d=x=y"]) == {"a.b": 1e-3, "c": [1, 2], "d": "x=y"}
    with pytest.raises(ValueError, match="write key=value"):
        parse_settings(["a"])


def test_the_package_is_a_program_that_completes_its_commands() -> None:
    def run(*arguments: str, **environment: str) -> str:
        command = [sys.executable, "-m", "vdiff_fast", *arguments]
        done = subprocess.run(
            command, cwd=ROOT, env=os.environ | environment, capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    assert run("--version") == vf.__version__
    assert "Usage: vdiff-fast " in run("--help")
    words = {"COMP_WORDS": "vdiff-fast do", "COMP_CWORD": "1"}
    assert run(_VDIFF_FAST_COMPLETE="complete_bash", **words) == "doctor"


def test_a_missing_extra_is_one_line_with_the_command() -> None:
    code = """
import sys
from importlib.machinery import PathFinder
find = PathFinder.find_spec
PathFinder.find_spec = staticmethod(lambda name, *a, **k: None if name == "typer" else find(name, *a, **k))
from vdiff_fast.cli import main
sys.exit(main(["doctor"]))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1] == ("error: vdiff-fast needs typer: pip install 'vdiff-fast[cli]'")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--op", "group_norm"], "no op is called 'group_norm'"),
        (["--model", "unet"], "no model is called 'unet'"),
        (["--against", "no-such-commit"], "no such commit"),
        (["--plots", "nowhere"], "no results to draw"),
    ],
)
def test_bench_names_what_does_not_exist(options: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert message in error_line(capsys, "bench", *options)
