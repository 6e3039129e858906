"""`python -m tools.captions`: clips, a codec, a text encoder, a cache, a denoiser, and videos of 40 prompts, read.

Every step is left out where its result is there already, so that a killed run goes on.
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tools.captions import clips, judge
from tools.captions.codec import train_codec
from tools.captions.text import train_text
from vdiff_fast import data
from vdiff_fast._files import write_text
from vdiff_fast.cli import main as vdiff_fast

RECIPE = Path(__file__).parents[2] / "recipes" / "captions_digits.yaml"
# Seconds of this process on all cores.
_CPU = "cpu_seconds"


def _timed(report: dict[str, Any], name: str, work: Callable[[], Any]) -> Any:
    before, wall = _cpu(), time.perf_counter()
    result = work()
    report[name] = {_CPU: round(_cpu() - before, 1), "wall_seconds": round(time.perf_counter() - wall, 1)}
    if isinstance(result, float):
        report[name]["result"] = result
    print(f"{name}: {report[name]}", flush=True)
    return result


def _cpu() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in used)


def _run(*words: object) -> None:
    if vdiff_fast([str(word) for word in words]):
        raise SystemExit(f"vdiff-fast {words[0]} failed")


def _sample(run: Path, prompts: list[str], out: Path, seed: int, steps: int, guidance: float) -> Tensor:
    """Videos (B, 3, T, H, W) in [-1, 1] of the prompts, drawn by the command and read from its files."""
    out.mkdir(parents=True, exist_ok=True)
    write_text(out / "prompts.txt", "\n".join(prompts) + "\n")
    _run(
        "sample", run, "--prompts", out / "prompts.txt", "--out", out / "video.mp4", "--steps", steps, "--sampler",
        "euler", "--guidance", guidance, "--seed", seed, "--no-grid",
    )  # fmt: skip
    read = [data.decode(out / f"video_{i}.mp4", layout="CTHW").frames for i in range(len(prompts))]
    return data.to_unit_range(torch.stack(read))


def _other(prompt: str, word: int, others: tuple[str, ...]) -> str:
    """The prompt with its word replaced by the next one of `others`."""
    words = prompt.split()
    words[word] = others[(others.index(words[word]) + 1) % len(others)]
    return " ".join(words)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("out/captions"))
    parser.add_argument("--clips", type=int, default=800)
    parser.add_argument("--codec-steps", type=int, default=600)
    parser.add_argument("--text-steps", type=int, default=300)
    parser.add_argument("--steps", type=int, default=None, help="of the denoiser; the recipe's if left out")
    parser.add_argument("--sampling-steps", type=int, default=25)
    parser.add_argument("--guidance", type=float, default=2.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--set", action="append", default=[], help="key=value of the recipe")
    given = parser.parse_args()
    report = make(given)
    write_text(given.out / "report.json", json.dumps(report, indent=1) + "\n")
    print(json.dumps(report, indent=1))


def make(given: argparse.Namespace) -> dict[str, Any]:
    """All steps; the report has their times and the scores."""
    out, report = given.out, {}
    folder, codec, text, cache, run = (out / name for name in ("clips", "codec", "text", "cache", "run"))
    _timed(report, "clips", lambda: clips.write_clips(folder, given.clips, given.seed))
    if not (codec / "config.json").is_file():
        frames = clips.read_clips(folder)
        _timed(report, "codec", lambda: train_codec(frames, codec, given.codec_steps, given.seed))
    if not (text / "config.json").is_file():
        _timed(report, "text", lambda: train_text(clips.all_captions(), text, given.text_steps, given.seed))
    command = [
        "cache", folder, "--cache-dir", cache, "--codec", codec, "--text", text, "--captions", folder / "captions.csv",
        "--frames", clips.FRAMES, "--size", clips.SIZE,
    ]  # fmt: skip
    _timed(report, "cache", lambda: _run(*command))
    settings = [word for setting in given.set for word in ("--set", setting)]
    steps = ["--steps", given.steps] if given.steps else []
    train = ["train", "--config", RECIPE, "--data", cache, "--out", run, "--resume", *steps, *settings]
    _timed(report, "train", lambda: _run(*train))
    _timed(report, "sample", lambda: report.update(scores=_scores(given, run)))
    return report


def _scores(given: argparse.Namespace, run: Path) -> dict[str, Any]:
    """How the 40 prompts are read, and what swapping a word changes under the same noise."""
    sprites, prompts = clips.sprites(), clips.all_captions()
    options = (given.seed + 1, given.sampling_steps, given.guidance)
    videos = _sample(run, prompts, given.out / "prompts", *options)
    scores: dict[str, Any] = {"prompts": judge.score(videos, prompts, sprites)}
    for name, word, others in (("digit_swapped", 1, clips.WORDS), ("way_swapped", -1, tuple(clips.WAYS))):
        swapped = [_other(prompt, word, others) for prompt in prompts]
        scores[name] = judge.score(_sample(run, swapped, given.out / name, *options), swapped, sprites)
    scores["training_clips"] = judge.score(
        data.to_unit_range(clips.read_clips(given.out / "clips")[:40]), prompts, sprites
    )
    pictures = data.postprocess(videos, scale=3)
    data.write_video(data.grid(pictures, columns=8), given.out / "captions.gif", fps=8)
    data.contact_sheet(data.postprocess(videos[::5], scale=3), given.out / "contact.png")
    return scores


if __name__ == "__main__":
    main()
