"""Quality against steps: every sampler on a trained run, as a plot and its numbers.

`python -m benchmarks.sampler_quality RUN --out docs/sampler_quality` writes .png and .json. Two measures, both over the
same seeds: how far a deterministic sampler is from where its equation ends (a run of Heun with many steps), and, for
every sampler, the energy distance between samples and clips of the training data, in pooled pixels; the distance
between two halves of the data is drawn as the floor.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

import vdiff_fast as vf
from vdiff_fast.bench.report import environment
from vdiff_fast.data import to_unit_range
from vdiff_fast.diffusion import SAMPLERS
from vdiff_fast.training.build import build_dataset
from vdiff_fast.training.generate import TrainedRun, class_labels, draw_samples, load_run

STOCHASTIC = ("ddpm", "dpmpp_2m_sde")
# Those of models that are not told where a step ends.
PLAIN = tuple(name for name, sampler in SAMPLERS.items() if not sampler.passes_end)


@dataclass(frozen=True)
class Result:
    """One sampler at one number of steps."""

    sampler: str
    steps: int
    calls: int
    to_converged: float | None
    to_data: float


def pooled(videos: Tensor) -> Tensor:
    """Means over 4 x 4 cells of every second frame, (B, features): what a small data set can tell apart."""
    return F.adaptive_avg_pool3d(videos, (max(1, videos.shape[2] // 2), 4, 4)).flatten(1)


def energy_distance(a: Tensor, b: Tensor) -> float:
    """sqrt(2 E|A - B| - E|A - A'| - E|B - B'|), 0 for equal distributions (Szekely and Rizzo 2013), unbiased."""

    def within(x: Tensor) -> Tensor:
        return torch.cdist(x, x).sum() / (len(x) * (len(x) - 1))

    return float((2 * torch.cdist(a, b).mean() - within(a) - within(b)).clamp(min=0).sqrt())


def data_clips(run: TrainedRun, count: int) -> Tensor:
    """`count` clips spread over the run's training data, in [-1, 1]."""
    dataset: Any = build_dataset(run.config.data, run.config.seed)
    picks = torch.linspace(0, len(dataset) - 1, count).long().tolist()
    return torch.cat([to_unit_range(dataset[i]["video"][None]) for i in picks])


def calls_of(sampler: str, steps: int) -> int:
    return 2 * steps - 1 if sampler == "heun" else steps


class Runner:
    """Draws the same videos with any sampler."""

    def __init__(self, run: TrainedRun, count: int, batch: int, spacing: str, seed: int) -> None:
        self.run, self.count, self.batch, self.spacing, self.seed = run, count, batch, spacing, seed
        self.labels = class_labels(count, run.num_classes)

    def __call__(self, sampler: str, steps: int) -> Tensor:
        parts = []
        for start in range(0, self.count, self.batch):
            size = min(self.batch, self.count - start)
            labels = None if self.labels is None else self.labels[start : start + size]
            videos = draw_samples(
                self.run.model, self.run.schedule, self.run.config, size, sampler=sampler, steps=steps,
                spacing=None if sampler == "heun" else self.spacing, labels=labels,
                seed=vf.diffusion.Noise(self.seed, sample_offset=start),
            )  # fmt: skip
            parts.append(videos.cpu())
        return torch.cat(parts)


def measure(runner: Runner, clips: Tensor, steps: list[int], converged_steps: int) -> list[Result]:
    converged = runner("heun", converged_steps)
    results = []
    for sampler in PLAIN:
        for count in tqdm(steps, desc=sampler):
            videos = runner(sampler, count)
            distance = None if sampler in STOCHASTIC else float((videos - converged).square().mean().sqrt())
            quality = energy_distance(pooled(videos), pooled(clips))
            results.append(Result(sampler, count, calls_of(sampler, count), distance, quality))
    return results


def plot(results: list[Result], floor: float, path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot, ticker

    figure, axes = pyplot.subplots(1, 2, figsize=(11, 4.2))
    for number, sampler in enumerate(PLAIN):
        own = [r for r in results if r.sampler == sampler]
        look = {"marker": "o", "label": sampler, "color": f"C{number}"}
        calls = [r.calls for r in own]
        axes[0].plot(calls, [r.to_data for r in own], **look)
        if sampler not in STOCHASTIC:
            axes[1].plot(calls, [r.to_converged for r in own], **look)
    axes[0].axhline(floor, color="grey", linestyle="--", label="data against data")
    axes[0].set(title="energy distance to the data", xscale="log", xlabel="calls of the model")
    axes[1].set(title="RMSE to the converged video", xscale="log", yscale="log", xlabel="calls of the model")
    for axis in axes:
        axis.grid(True, alpha=0.3)
        axis.xaxis.set_major_formatter(ticker.ScalarFormatter())
        axis.xaxis.set_minor_formatter(ticker.NullFormatter())
        axis.set_xticks(sorted({r.steps for r in results} | {max(r.calls for r in results)}))
    axes[0].legend(fontsize=8, framealpha=0.4)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", help="folder of a run, as `vdiff-fast train --out` left it")
    parser.add_argument("--out", default="sampler_quality", help="path without suffix")
    parser.add_argument("--num", type=int, default=32, help="videos per point")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--steps", type=int, nargs="+", default=[4, 6, 10, 20, 50])
    parser.add_argument("--converged-steps", type=int, default=100)
    parser.add_argument("--spacing", default="trailing", help="times of every sampler but heun, which takes its own")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="auto")
    given = parser.parse_args()
    run = load_run(given.run, device=given.device)
    clips = data_clips(run, 2 * given.num)
    floor = energy_distance(pooled(clips[::2]), pooled(clips[1::2]))
    runner = Runner(run, given.num, given.batch, given.spacing, given.seed)
    results = measure(runner, clips[::2], given.steps, given.converged_steps)
    path = Path(given.out)
    path.parent.mkdir(parents=True, exist_ok=True)
    document = {
        "environment": environment(torch.device(run.schedule.device)),
        "version": vf.__version__,
        "step": run.step,
        "videos": given.num,
        "spacing": given.spacing,
        "converged_steps": given.converged_steps,
        "floor": floor,
        "results": [vars(r) for r in results],
    }
    path.with_suffix(".json").write_text(json.dumps(document, indent=1) + "\n")
    plot(results, floor, path.with_suffix(".png"))
    print(f"wrote {path.with_suffix('.json')} and {path.with_suffix('.png')}; data against data {floor:.3f}")


if __name__ == "__main__":
    main()
