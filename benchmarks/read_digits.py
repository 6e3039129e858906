"""Read the digits of a run: `python -m benchmarks.read_digits RUN` samples every label and says which one it sees.

A frame is read by template matching: the handwriting of the training set that correlates best with it at any place.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from vdiff_fast.bench.report import environment
from vdiff_fast.data import to_unit_range
from vdiff_fast.training.build import build_dataset
from vdiff_fast.training.generate import TrainedRun, class_labels, draw_samples, load_run

# Variance of a window below which it is taken as empty: it correlates with nothing.
EMPTY = 1e-3


def read(videos: Tensor, sprites: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Digit and correlation of every frame, (B, T) each, of videos (B, C, T, H, W) in [-1, 1]; see `find`."""
    return find(videos, sprites, targets)[:2]


def find(videos: Tensor, sprites: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Digit, correlation (B, T) and top left corner (B, T, 2) of the best match of every frame.

    corr = max over sprites and places of <frame window - mean, sprite - mean> / (norms), 1 for the sprite itself.
    """
    frames = (videos.mean(1).double() + 1) / 2
    kernels = sprites.double() - sprites.double().mean((1, 2), keepdim=True)
    kernels = kernels / kernels.flatten(1).norm(dim=1)[:, None, None]
    flat, area = frames.flatten(0, 1)[:, None], sprites[0].numel()
    ones = torch.ones(1, 1, *sprites.shape[1:], dtype=flat.dtype)
    total, squares = F.conv2d(flat, ones), F.conv2d(flat * flat, ones)
    spread = (squares - total * total / area).clamp(min=EMPTY).sqrt()
    matches = F.conv2d(flat, kernels[:, None]) / spread
    best, places = matches.flatten(2).max(2)
    best, which = best.max(1)
    place = places.gather(1, which[:, None])[:, 0]
    corners = torch.stack([place // matches.shape[3], place % matches.shape[3]], dim=1)
    digits = targets[which]
    return tuple(x.unflatten(0, frames.shape[:2]) for x in (digits, best, corners))  # type: ignore[return-value]


def handwriting(run: TrainedRun) -> tuple[Tensor, Tensor]:
    """The pictures that the run learned from, and the digits they show."""
    dataset: Any = build_dataset(run.config.data, run.config.seed)
    return torch.from_numpy(dataset.sprites), torch.from_numpy(dataset.targets)


def measure(run: TrainedRun, count: int, sampler: str, steps: int, guidance: float, seed: int) -> dict[str, Any]:
    """Shares of frames, and of whole videos, that show the digit they were asked for."""
    labels = class_labels(count, run.num_classes)
    if labels is None or run.config.data.digits != 1:
        raise SystemExit("read_digits needs a run on moving-digits with labels and one digit")
    with torch.no_grad():
        videos = draw_samples(
            run.model, run.schedule, run.config, count, sampler=sampler, steps=steps, guidance=guidance, seed=seed,
            labels=labels, num_classes=run.num_classes, progress=True,
        )  # fmt: skip
    digits, likeness = read(videos.cpu(), *handwriting(run))
    right = digits == labels.cpu()[:, None]
    dataset: Any = build_dataset(run.config.data, run.config.seed)
    clips = to_unit_range(torch.stack([dataset[i]["video"] for i in range(min(count, len(dataset)))]))
    return {
        "step": run.step, "batch_size": run.config.batch_size, "handwritings": len(handwriting(run)[0]),
        "videos": count, "sampler": sampler, "sampling_steps": steps, "guidance": guidance, "seed": seed,
        "frames_right": float(right.double().mean()), "videos_right": float(right.all(1).double().mean()),
        "likeness_mean": float(likeness.mean()), "likeness_lowest": float(likeness.min()),
        "likeness_of_training_clips": float(read(clips, *handwriting(run))[1].mean()),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--num", type=int, default=20)
    parser.add_argument("--sampler", default="ddpm")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--guidance", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=None, help="JSON to write")
    given = parser.parse_args()
    run = load_run(given.run)
    result = measure(run, given.num, given.sampler, given.steps, given.guidance, given.seed)
    if given.out is not None:
        document = {"environment": environment(run.schedule.device), "digits": result}
        given.out.write_text(json.dumps(document, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
