"""`vdiff-fast demo`: learn a short clip by heart, sample it, and compare fused with reference on the trained model."""

from __future__ import annotations

import json
import shutil
import time
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import Tensor

from vdiff_fast._files import write_text

# Every 4th of the clip's 24 frames per second: 16 frames show the whole action.
STRIDE, CLIP_FPS = 4, 24
SETTINGS: dict[str, Any] = {
    "data.frames": 16,
    "data.size": 32,
    "data.stride": STRIDE,
    "model.name": "unet-tiny",
    "diffusion.target": "v",
    # min_snr weighs steps of much noise lightly: a short training then never leaves the noise.
    "diffusion.weighting": "uniform",
    "batch_size": 2,
    "optimizer.lr": 1e-3,
    "optimizer.warmup_steps": 30,
    "optimizer.weight_decay": 0.0,
    "ema.decay": 0.99,
    "sample.every": 0,
    "checkpoint.every": 0,
    "log.every": 1,
    "log.plot_every": 0,
}
SAMPLER, SAMPLING_STEPS, SPACING = "ddim", 12, "trailing"
SAMPLES = 3
WANTED_PSNR = 19.0
WANTED_MOTION = (0.5, 2.0)


def demo(
    out: Annotated[Path, typer.Option(help="Folder for sample.gif, contact.png, loss.png, report.json.")] = Path("out"),
    data: Annotated[Path | None, typer.Option(help="Another short video; the bundled clip if left out.")] = None,
    steps: Annotated[int, typer.Option(min=1, help="Training steps.")] = 600,
    seed: Annotated[int, typer.Option(help="Seed of everything.")] = 0,
    rounds: Annotated[int, typer.Option(min=1, help="Timed steps of each backend at the end.")] = 5,
) -> None:
    """Train a small video U-Net on a short clip, sample it, and show what the fused kernels save. Minutes on a CPU."""
    from vdiff_fast import data as videos
    from vdiff_fast.training import config as configuration
    from vdiff_fast.training.trainer import Trainer

    started = time.perf_counter()
    run = out / "run"
    shutil.rmtree(run, ignore_errors=True)
    source = data or videos.demo_clip()
    config = configuration.load_config(None, SETTINGS | {"data.source": str(source), "steps": steps, "seed": seed})
    trainer = Trainer(config, run)
    windows = torch.stack([videos.to_unit_range(item["video"][None])[0] for item in _items(trainer.dataset)])
    print(f"training {config.model.name} on {len(windows)} windows of {source.name}, {steps} steps", flush=True)
    untrained = _draw(trainer.model, trainer.objective.schedule, config, 1)
    trainer.fit()
    trained = time.perf_counter()
    with trainer.ema.applied() as model:
        samples = _draw(model, trainer.objective.schedule, config, SAMPLES)
        report = _report(samples, untrained, windows)
        report["seconds"] = {"training": trained - started, "sampling": time.perf_counter() - trained}
        _write_pictures(samples, windows, report["window"], out)
        shutil.copyfile(run / "loss.png", out / "loss.png")
        print(f"fused against reference on this model, {config.batch_size} clips:", flush=True)
        report |= _compare(model, windows[: config.batch_size], trainer.objective.schedule, config, rounds)
    report |= {"steps": steps, "seed": seed, "torch": torch.__version__, "threads": torch.get_num_threads()}
    write_text(out / "report.json", json.dumps(report, indent=1) + "\n")
    print(_summary(report, out))
    if not report["passed"]:
        raise typer.Exit(1)


def _items(dataset: Any) -> list[dict[str, Any]]:
    return [dataset[i] for i in range(len(dataset))]


def _draw(model: Any, schedule: Any, config: Any, count: int) -> Tensor:
    from vdiff_fast.training.generate import draw_samples

    return draw_samples(
        model, schedule, config, count, sampler=SAMPLER, steps=SAMPLING_STEPS, spacing=SPACING, seed=config.seed
    )


def _report(samples: Tensor, untrained: Tensor, windows: Tensor) -> dict[str, Any]:
    """PSNR to the nearest window beside what costs nothing, and whether it moves as the clip does."""
    from vdiff_fast.training.evaluate import motion, nearest_windows

    nearest = nearest_windows(samples, windows)
    moves, clip_moves = motion(samples), motion(windows)
    low, high = WANTED_MOTION
    return {
        "psnr": nearest.psnr,
        "window": nearest.window,
        "psnr_untrained": nearest_windows(untrained, windows).psnr[0],
        "psnr_grey": nearest_windows(torch.zeros_like(windows[:1]), windows).psnr[0],
        "psnr_mean_window": nearest_windows(windows.mean(0, keepdim=True), windows).psnr[0],
        "motion": moves,
        "motion_clip": clip_moves,
        "passed": min(nearest.psnr) >= WANTED_PSNR and low * clip_moves <= moves <= high * clip_moves,
    }


def _write_pictures(samples: Tensor, windows: Tensor, nearest: list[int], out: Path) -> None:
    """The nearest window of the first sample, then the samples, enlarged."""
    from vdiff_fast import data as videos

    shown = torch.cat([windows[nearest[0]][None], samples.clamp(-1, 1)])
    pictures = videos.postprocess(shown, scale=4)
    videos.write_video(videos.grid(pictures, columns=2), out / "sample.gif", fps=CLIP_FPS / STRIDE)
    videos.contact_sheet(videos.postprocess(shown, scale=3), out / "contact.png", columns=8)


def _compare(model: Any, x0: Tensor, schedule: Any, config: Any, rounds: int) -> dict[str, Any]:
    from vdiff_fast.training.compare import StepUnderTest, format_costs

    step = StepUnderTest(model, x0, schedule, target=config.diffusion.target)
    parity, costs = step.parity(), step.costs(rounds)
    print(format_costs(costs, parity), flush=True)
    return {"costs": asdict(costs), "parity": asdict(parity)}


def _summary(report: dict[str, Any], out: Path) -> str:
    figures = ", ".join(f"{value:.1f}" for value in report["psnr"])
    verdict = "as wanted" if report["passed"] else "NOT as wanted"
    return (
        f"PSNR to the nearest window: {figures} dB (at least {WANTED_PSNR:g}); "
        f"untrained {report['psnr_untrained']:.1f}, grey {report['psnr_grey']:.1f}, "
        f"mean of all windows {report['psnr_mean_window']:.1f}\n"
        f"motion {report['motion']:.3f}, clip {report['motion_clip']:.3f}: {verdict}\n"
        f"{out / 'sample.gif'}: the clip first, then {SAMPLES} samples"
    )
