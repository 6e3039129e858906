"""Diffusion over diffusion against autoregressive: wall time for the same frames and steps, and the joints.

`python -m benchmarks.long_video RUN` on a run of recipes/long_video_digits.yaml; writes long_video.json beside the
results. A joint is where two clips of the last level meet: the differences into and out of the shared frame, over those
inside the clips. The run's own training videos give the same figures for comparison.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.read_digits import handwriting, read
from vdiff_fast import data
from vdiff_fast.bench.report import environment, machine_name
from vdiff_fast.diffusion import long_video_plan, sample_autoregressive, sample_long
from vdiff_fast.training.build import build_dataset
from vdiff_fast.training.generate import TrainedRun, load_run


def joint_ratio(video: Tensor, period: int) -> dict[str, float]:
    """Mean |x_{n+1} - x_n| at and away from the frames n * period, of (1, C, T, H, W), and their ratio."""
    difference = (video[:, :, 1:] - video[:, :, :-1]).abs().mean(dim=(0, 1, 3, 4))
    place = torch.arange(len(difference)) % period
    joint = (place == 0) | (place == period - 1)
    joint[0] = joint[-1] = False  # the ends of the video join nothing
    across, inside = float(difference[joint].mean()), float(difference[~joint].mean())
    return {"across": across, "inside": inside, "ratio": across / inside}


def identity(video: Tensor) -> dict[str, float]:
    """Likeness of each frame to the first, wherever the digit is: the largest circular normalised cross-correlation."""
    frames = video[0].mean(0).double() + 1
    spectrum = torch.fft.rfft2(frames)
    products = torch.fft.irfft2(spectrum * spectrum[:1].conj(), s=frames.shape[-2:]).flatten(1).amax(1)
    norms = frames.flatten(1).norm(dim=1)
    likeness = products / (norms * norms[0])
    return {"mean": float(likeness.mean()), "lowest": float(likeness.min())}


def training_video(run: TrainedRun, frames: int) -> Tensor:
    """One of the training videos, at stride 1 and as long as is asked."""
    config = run.config.data.model_copy(update={"frames": frames, "strides": (), "stride": 1})
    return data.to_unit_range(build_dataset(config, run.config.seed)[0]["video"][None])


def compare(run: TrainedRun, length: int, steps: int, batch_size: int, seed: int, label: int) -> dict[str, Any]:
    """Both ways from the same first clip: seconds, joints and identity.

    A level for each trained stride, whatever the length: fewer would put the key frames closer than in training.
    """
    clip, channels, size = run.config.data.frames, run.config.data.channels, run.config.data.size
    height, width = (size, size) if isinstance(size, int) else size
    y = torch.tensor([label]) if run.num_classes else None
    options: dict[str, Any] = {
        "seed": seed, "steps": steps, "target": run.config.diffusion.target, "clip": 1.0, "spacing": "trailing", "y": y,
    }  # fmt: skip
    plan = long_video_plan(clip, len(set(run.config.data.all_strides)), length=length)
    start = time.perf_counter()
    hierarchy = sample_long(
        run.model, plan, run.schedule, frame_shape=(channels, height, width), batch_size=batch_size, progress=True,
        **options,
    )  # fmt: skip
    middle = time.perf_counter()
    overlap = clip // 2
    chain = sample_autoregressive(
        run.model, plan.frames, run.schedule, start=hierarchy[0, :, :clip], clip_frames=clip, overlap=overlap,
        progress=True, **options,
    )  # fmt: skip
    end = time.perf_counter()
    real = training_video(run, plan.frames)

    def as_asked(video: Tensor) -> float:
        return float((read(video.cpu(), *handwriting(run))[0] == label).double().mean())

    return {
        "frames": plan.frames, "clips": plan.clips, "rounds": plan.rounds, "steps": steps, "batch_size": batch_size,
        "diffusion_over_diffusion": {
            "seconds": middle - start, "joints": joint_ratio(hierarchy, clip - 1), "identity": identity(hierarchy),
            "read": as_asked(hierarchy),
        },
        "autoregressive": {
            "seconds": end - middle, "overlap": overlap, "clips": -(-(plan.frames - clip) // (clip - overlap)),
            "joints": joint_ratio(chain, clip - overlap), "identity": identity(chain), "read": as_asked(chain),
        },
        "training_video": {"joints": joint_ratio(real, clip - 1), "identity": identity(real)},
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path, help="folder of a run trained with masks")
    parser.add_argument("--lengths", type=int, nargs="+", default=[50, 344])
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--label", type=int, default=3)
    parser.add_argument("--out", type=Path, default=None)
    arguments = parser.parse_args()
    run = load_run(arguments.run)
    cases = [
        compare(run, length, arguments.steps, arguments.batch_size, arguments.seed, arguments.label)
        for length in arguments.lengths
    ]
    device = run.schedule.device
    out = arguments.out or Path(__file__).parent / "results" / machine_name(device) / "long_video.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps({"environment": environment(device), "step": run.step, "cases": cases}, indent=1) + "\n")
    for case in cases:
        print(json.dumps(case, indent=1))
    print(out)


if __name__ == "__main__":
    main()
