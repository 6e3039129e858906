"""Long videos and known frames from the command line, with an almost untrained model."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from vdiff_fast import data
from vdiff_fast.cli import main
from vdiff_fast.cli.app import app

UNET = (
    "model.changes={channels: [8, 16], blocks: [1, 1], spatial_attention: [false, false], "
    "temporal_attention: [false, true], temporal_conv: [false, false], head_dim: 8, num_groups: 2, "
    "condition_injection: blocks}"
)
DIT = "model.changes={width: 48, depth: 2, heads: 3, condition_injection: blocks}"
MODELS = {"unet": ["--model", "unet-tiny", "--set", UNET], "dit": ["--model", "dit-tiny", "--set", DIT]}
TRAIN = [
    "train", "--data", "moving-digits", "--frames", "4", "--size", "8", "--steps", "2", "--batch-size", "2",
    "--checkpoint-every", "0", "--sample-every", "0", "--warmup", "1",
]  # fmt: skip
ROOT = Path(__file__).parents[2]
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
COMMAND = ("-m", "vdiff_fast.cli", "long")


def run(*arguments: object) -> Any:
    result = CliRunner().invoke(app, [str(a) for a in arguments])
    assert result.exit_code == 0, result.output
    return result


def error_line(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    capsys.readouterr()
    assert main([str(a) for a in arguments]) == 1
    return next(line for line in capsys.readouterr().err.splitlines() if line.startswith("error: "))


@pytest.fixture(scope="module", params=["unet"])
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "masked"
    roles = ("--masks", "global,local=2,prediction,inpaint", "--strides", "1,3,9")
    run(*TRAIN, *MODELS[request.param], "--out", out, *roles)
    return out


both = pytest.mark.parametrize("trained", MODELS, indirect=True)


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pictures") / "first.png"
    data.write_png(torch.arange(192, dtype=torch.uint8).view(3, 8, 8), path)
    return path


@both
def test_long_says_what_it_makes_and_goes_on(trained: Path, tmp_path: Path) -> None:
    out = tmp_path / "long.gif"
    result = run("long", trained, "--out", out, "--steps", "1", "--levels", "2")
    assert "10 frames: 2 levels of 4-frame clips, 4 clips in 2 rounds" in result.output
    assert data.scan(out).decoded == 10
    segments = sorted((tmp_path / "long.gif.segments").glob("level_*/*"))
    assert len(segments) == 4
    segments[-1].unlink()
    kept = {path: path.stat().st_mtime_ns for path in segments[:-1]}
    first = out.read_bytes()
    run("long", trained, "--out", out, "--steps", "1", "--levels", "2")
    assert out.read_bytes() == first
    assert all(path.stat().st_mtime_ns == written for path, written in kept.items())
    # Two levels of a run of three strides make key frames 9 apart and place them 3 apart.
    assert "warning: strides [1, 3, 9] do not match 2 level(s) of 4-frame clips: [1, 3]; it plays 3 times as fast" in (
        " ".join(result.output.split())
    )
    assert "--levels 3 --length 10 keeps their speed" in " ".join(result.output.split())


def test_a_short_video_is_the_beginning_of_the_long_one(trained: Path, tmp_path: Path) -> None:
    """Three trained strides are three levels, whatever the length: fewer would change the speed."""
    whole = run("long", trained, "--out", tmp_path / "b.gif", "--steps", "1").output
    assert "28 frames: 3 levels of 4-frame clips, 13 clips in 3 rounds" in whole
    cut = run("long", trained, "--out", tmp_path / "c.mp4", "--steps", "1", "--length", "6", "--upscale", "2").output
    assert "6 frames: 3 levels of 4-frame clips, 4 clips in 3 rounds" in cut
    assert "warning" not in whole + cut
    assert (data.scan(tmp_path / "c.mp4").decoded, data.scan(tmp_path / "c.mp4").width) == (6, 16)
    short, long = clips(tmp_path / "c.mp4.segments"), clips(tmp_path / "b.gif.segments")
    assert len(short) == 4
    assert short.items() <= long.items()


def test_autoregressive_begins_alike(trained: Path, tmp_path: Path) -> None:
    options = ["--steps", "1", "--levels", "2", "--seed", "5"]
    run("long", trained, "--out", tmp_path / "a.gif", *options)
    result = run("long", trained, "--out", tmp_path / "b.gif", *options, "--autoregressive", "--overlap", "1")
    assert "then 10 frames by clips that continue 1 frames" in result.output
    assert data.scan(tmp_path / "b.gif").decoded == 10
    assert len(list((tmp_path / "b.gif.segments" / "autoregressive").glob("level_0/*"))) == 2
    names = [f"level_{level}/00000000.safetensors" for level in (0, 1)]
    same = [(tmp_path / f"{n}.gif.segments" / name).read_bytes() for name in names for n in "ab"]
    assert same[0] == same[1]
    assert same[2] == same[3]


def test_autoregressive_from_a_picture_has_neighbouring_frames(trained: Path, picture: Path, tmp_path: Path) -> None:
    """A known first frame was trained at stride 1: the first clip is one of these, and a chain may be of any length."""
    begun = ["long", trained, "--steps", "1", "--first-frame", picture, "--out"]
    result = run(*begun, tmp_path / "a.gif", "--autoregressive", "--length", "31")
    assert "4 frames: 1 levels of 4-frame clips, 1 clips" in result.output
    assert "then 31 frames by clips that continue 2 frames" in result.output
    assert "warning" not in result.output
    assert data.scan(tmp_path / "a.gif").decoded == 31
    result = run(*begun, tmp_path / "b.gif", "--length", "6")
    assert "a known first frame was trained at 1 alone; it plays 9 times slower than" in " ".join(result.output.split())


def test_training_warns_of_strides_that_are_no_levels(tmp_path: Path) -> None:
    roles = ["--masks", "global,local", "--strides", "1,4", "--steps", "1"]
    result = run(*TRAIN, *MODELS["unet"], "--out", tmp_path / "run", *roles)
    assert "warning: strides [1, 4] do not match clips of 4 frames for vdiff-fast long: [1, 3] do" in (
        " ".join(result.output.split())
    )


def test_a_run_without_the_roles_says_which_it_needs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    only, out = tmp_path / "first", tmp_path / "a.gif"
    run(*TRAIN, *MODELS["unet"], "--out", only, "--masks", "first", "--steps", "1")
    line = error_line(capsys, "long", only, "--out", out)
    assert "trained with --masks first; long needs global and local: train it with --masks first,global,local" in line
    assert line.endswith("as it is, it can sample --first-frame")
    line = error_line(capsys, "long", only, "--out", out, "--autoregressive")
    assert "long --autoregressive needs global and prediction" in line
    assert "interpolate needs local" in error_line(capsys, "interpolate", only, out, "--out", out)
    run("sample", only, "--out", out, "--steps", "1")
    line = error_line(capsys, "sample", only, "--out", out, "--video", out, "--keep", "2")
    assert "sample --video --keep needs prediction: train it with --masks first,prediction" in line
    assert not out.with_name("a.gif.segments").exists()


@both
def test_uses_of_one_model(trained: Path, picture: Path, tmp_path: Path) -> None:
    """Begin with a picture, go between two, go on from a video, paint a part of it, and interpolate."""
    few, out = ["--steps", "1"], tmp_path / "a.gif"
    run("sample", trained, "--out", tmp_path / "first.png", *few, "--first-frame", picture)
    run("sample", trained, "--out", tmp_path / "between.png", *few, "--first-frame", picture, "--last-frame", picture)
    run("long", trained, "--out", tmp_path / "long.gif", *few, "--levels", "2", "--first-frame", picture)
    free = run("sample", trained, "--out", out, *few)
    assert "a clip of its own has the largest" in free.output
    run("sample", trained, "--out", tmp_path / "on.gif", *few, "--video", out, "--keep", "2")
    run("sample", trained, "--out", tmp_path / "painted.gif", *few, "--video", out, "--box", "2x2x4x4")
    run("interpolate", trained, out, "--out", tmp_path / "slow.gif", *few)
    assert data.scan(tmp_path / "slow.gif").decoded == 3 * 3 + 1
    begun = data.decode(tmp_path / "long.gif").frames[0].float()
    wanted = torch.arange(192.0).view(3, 8, 8).permute(1, 2, 0)
    # A GIF has a palette: near, not equal.
    assert float((begun - wanted).abs().mean()) < 12


def test_errors_say_what_would_work(
    trained: Path, picture: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "a.gif"
    plain = tmp_path / "plain"
    run(*TRAIN, *MODELS["unet"], "--out", plain)
    line = error_line(capsys, "long", plain, "--out", out)
    assert "trained without masks" in line
    assert "--masks global,local" in line
    line = error_line(capsys, "sample", plain, "--out", out, "--first-frame", picture)
    assert "built without known frames (cond_channels=0)" in line
    assert "levels=3 fits" in error_line(capsys, "long", trained, "--out", out, "--levels", "2", "--length", "20")
    assert "clip must be at least 3" in error_line(capsys, "long", trained, "--out", out, "--clip", "2")
    assert "learned positions" in error_line(capsys, "long", trained, "--out", out, "--clip", "40")
    large = tmp_path / "large.png"
    data.write_png(torch.zeros(3, 16, 16, dtype=torch.uint8), large)
    line = error_line(capsys, "long", trained, "--out", out, "--first-frame", large)
    assert "large.png: 16x16, the video's frames are 8x8; resize it" in line
    assert "cannot write .png" in error_line(capsys, "long", trained, "--out", tmp_path / "a.png")
    assert "give --video" in error_line(capsys, "sample", trained, "--out", out, "--keep", "2")
    assert "either --keep FRAMES or --box" in error_line(capsys, "sample", trained, "--out", out, "--video", large)
    assert "--label: this run was trained without labels" in error_line(
        capsys, "long", trained, "--out", out, "--label", "1"
    )
    assert "length must be at least 1, got 0" in error_line(capsys, "long", trained, "--out", out, "--length", "0")
    line = error_line(capsys, "long", trained, "--out", out, "--levels", "30")
    assert "more than this machine's" in line
    assert "use fewer levels, or a length of at most" in line
    assert "give --autoregressive, too" in error_line(capsys, "long", trained, "--out", out, "--overlap", "2")
    assert "use 1, or train it with --labels" in error_line(capsys, "long", trained, "--out", out, "--guidance", "2")
    assert "no such run; give the folder" in error_line(capsys, "long", tmp_path / "none", "--out", out)
    large.write_text("no picture")
    line = error_line(capsys, "sample", trained, "--out", out, "--first-frame", large)
    assert "not a picture that can be read; give a PNG or JPEG file" in line
    line = error_line(capsys, "sample", trained, "--out", out, "--first-frame", picture, "--frames", "1")
    assert "nothing is left to draw" in line
    data.write_video(torch.zeros(3, 3, 8, 8, dtype=torch.uint8), tmp_path / "three.gif", fps=8)
    known = ["sample", trained, "--out", out, "--video", tmp_path / "three.gif"]
    assert "a longer video, or fewer --frames" in error_line(capsys, *known, "--box", "1x1x2x2")
    assert "a longer video, a smaller --keep" in error_line(capsys, *known, "--keep", "4")
    assert "top + height <= 8" in error_line(capsys, *known, "--frames", "3", "--box", "6x6x4x4")
    run("long", trained, "--out", out, "--steps", "1", "--levels", "1")
    line = error_line(capsys, "long", trained, "--out", out, "--steps", "2", "--levels", "1")
    assert "steps: 1 saved, 2 now" in line


def clips(folder: Path) -> dict[str, bytes]:
    """The finished clips by level and number."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.glob("level_*/0*"))}


def test_under_torchrun_and_after_a_kill_it_is_the_video_of_one_process(trained: Path, tmp_path: Path) -> None:
    """Processes of their own: two ranks (gloo) at once; one that is killed in its last level, then started again."""
    options = [str(trained), "--levels", "3", "--batch-size", "1", "--steps", "8", "--device", "cpu", "--out"]
    ranks = subprocess.Popen(
        [sys.executable, *TORCHRUN, *COMMAND, *options, str(tmp_path / "ranks.gif")],
        cwd=ROOT, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    alone = [sys.executable, *COMMAND, *options]
    killed = subprocess.Popen([*alone, str(tmp_path / "killed.gif")], cwd=ROOT, env=ENVIRONMENT)
    parts = tmp_path / "killed.gif.segments"
    deadline = time.monotonic() + 120
    while len(list(parts.glob("level_2/0*"))) < 1 and time.monotonic() < deadline:
        time.sleep(0.005)
    killed.send_signal(signal.SIGKILL)
    assert killed.wait() == -signal.SIGKILL
    kept = {path: path.stat().st_mtime_ns for path in parts.glob("level_*/0*")}
    assert 1 + 3 + 1 <= len(kept) < 13
    assert not (tmp_path / "killed.gif").exists()
    for name in ("killed", "whole"):
        subprocess.run([*alone, str(tmp_path / f"{name}.gif")], cwd=ROOT, env=ENVIRONMENT, timeout=120, check=True)
    assert all(path.stat().st_mtime_ns == written for path, written in kept.items())
    output, _ = ranks.communicate(timeout=120)
    assert ranks.returncode == 0, output
    assert output.count("28 frames: 3 levels of 4-frame clips, 13 clips in 3 rounds") == 1
    whole, picture = clips(tmp_path / "whole.gif.segments"), (tmp_path / "whole.gif").read_bytes()
    assert len(whole) == 13
    for name in ("ranks", "killed"):
        assert clips(tmp_path / f"{name}.gif.segments") == whole
        assert (tmp_path / f"{name}.gif").read_bytes() == picture
