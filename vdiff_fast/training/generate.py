"""Samples from a run: load its averaged weights, draw, write."""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from vdiff_fast import data, diffusion
from vdiff_fast.latents import CacheError, LatentInfo
from vdiff_fast.models.weights import plain_module
from vdiff_fast.training import checkpoint as ckpt
from vdiff_fast.training import distributed
from vdiff_fast.training.build import build_model, schedule_for
from vdiff_fast.training.latent_samples import decode_latents, draw_latents, load_encoders

if TYPE_CHECKING:
    from vdiff_fast.training.config import TrainConfig
    from vdiff_fast.training.latents import LatentSource
    from vdiff_fast.training.objective import Objective


@dataclass(frozen=True)
class TrainedRun:
    """A model with the weights of a checkpoint, and what is needed to draw from it.

    `latents` is of a run on latents; `classes` are the names of its labels, where its data had names.
    """

    model: nn.Module
    schedule: diffusion.NoiseSchedule
    config: TrainConfig
    step: int
    num_classes: int | None
    latents: LatentInfo | None = None
    classes: list[str] | None = None


def load_run(
    run: Path | str, *, step: int | None = None, ema: bool = True, device: str | torch.device = "auto",
    model: nn.Module | None = None,
) -> TrainedRun:  # fmt: skip
    """The model of RUN's newest checkpoint (or of `step`), with averaged weights unless `ema` is False.

    Args:
        model: the network that the run trained, where it was given to `Trainer` instead of named by the configuration.

    Raises:
        CheckpointError: there is no such checkpoint, or it does not fit the model its configuration names.
    """
    from vdiff_fast.training import config as configuration

    folder = Path(run) / "checkpoints"
    path = ckpt.latest_checkpoint(folder) if step is None else folder / f"step_{step:08d}"
    if path is None or not path.is_dir():
        if not Path(run).is_dir():
            raise ckpt.CheckpointError(f"{run}: no such run; give the folder that vdiff-fast train --out made")
        have = ", ".join(p.name for p in ckpt.checkpoints(folder)) or "none"
        of_step = f" of step {step}" if step is not None else ""
        fix = "give another --checkpoint" if have != "none" else "give the folder that vdiff-fast train --out made"
        raise ckpt.CheckpointError(f"{run}: no checkpoint{of_step} (there are: {have}); {fix}")
    saved = ckpt.load_checkpoint(path)
    config = configuration.from_mapping(configuration.parse_value(saved.config_yaml))
    chosen = distributed.choose_device(str(device))
    num_classes = saved.state["num_classes"]
    latents = LatentInfo.from_dict(saved.state["latents"]) if "latents" in saved.state else None
    if model is None:
        model = build_model(config, num_classes=num_classes, latents=latents)
    model = plain_module(model)
    ckpt.load_weights(model, saved.ema if ema else saved.model, path)
    schedule = schedule_for(config).to(chosen)
    return TrainedRun(
        model.to(chosen).eval(), schedule, config, saved.step, num_classes, latents, saved.state.get("classes")
    )


def draw_samples(
    model: nn.Module, schedule: diffusion.NoiseSchedule, config: TrainConfig, count: int, *, sampler: str = "ddim",
    steps: int = 50, guidance: float | diffusion.Guidance = 1.0, seed: int | diffusion.Noise = 0,
    labels: Tensor | None = None, num_classes: int | None = None,
    spacing: str | None = None, frames: int | None = None, size: tuple[int, int] | None = None,
    known: tuple[Tensor, Tensor] | None = None, progress: bool = False,
    churn: diffusion.Churn | None = None,
) -> Tensor:  # fmt: skip
    """`count` videos (B, C, T, H, W) in [-1, 1] about, of the trained shape unless `frames` and `size` say otherwise.

    `known` is (video, mask), broadcasting to all of them: what the mask marks is given and stays, see
    `vdiff_fast.diffusion.condition`.

    Raises:
        ConditionError: something is known, and the model was trained without masks.
        ValueError: those of `vdiff_fast.diffusion.sample`.
    """
    trained = config.data.size
    height, width = size or ((trained, trained) if isinstance(trained, int) else trained)
    channels = config.model.changes.get("in_channels", config.data.channels)
    shape = (count, channels, frames or config.data.frames, height, width)
    y = None if labels is None else labels.to(schedule.device)
    cond = None
    if known is not None:
        diffusion.require_conditioning(model, shape[1])
        given, mask = known[0].to(schedule.device).expand(shape), known[1].to(schedule.device)
        cond = diffusion.condition(given, mask)
    if y is not None and num_classes is not None:
        guidance = replace(diffusion.as_guidance(guidance), uncond={"y": num_classes})
    # Pixels end at -1 and 1, so every estimate of x0 is cut there.
    clip = 1.0 if config.data.values == "pixels" else None
    videos = diffusion.sample(
        model, shape, schedule, sampler, steps=steps, guidance=guidance, seed=seed, y=y, spacing=spacing,
        clip=clip, target=config.diffusion.target, continuous_time=config.diffusion.continuous_time,
        cond=cond, churn=churn, progress=progress,
    )  # fmt: skip
    return videos if known is None else diffusion.keep_known(videos, given, mask)


def _draw_examples(model: nn.Module, objective: Objective, source: LatentSource, **options: Any) -> Tensor:
    """Latents for captions of the cache, in its first bucket."""
    text = (source.examples[0][: objective.config.sample.count], source.examples[1][: objective.config.sample.count])
    return draw_latents(
        model, objective.schedule, objective.config, source.info, source.info.buckets[0], text, source.null, **options
    )


def class_labels(count: int, num_classes: int | None) -> Tensor | None:
    """Labels for `count` samples, each class in turn; None for a model without classes."""
    return torch.arange(count) % num_classes if num_classes else None


def write_samples(
    model: nn.Module, objective: Objective, config: TrainConfig, path: Path, *, num_classes: int | None, write: bool
) -> None:
    """`path`.gif, .mp4 (side by side) and .png (contact sheet), drawn with the run's seed so that they compare."""
    wanted = config.sample
    options: dict[str, Any] = {
        "sampler": wanted.sampler, "steps": wanted.steps, "guidance": wanted.guidance, "spacing": wanted.spacing,
        "seed": config.seed,
    }  # fmt: skip
    try:
        with objective.autocast():
            if objective.source is not None:
                latents = _draw_examples(model, objective, objective.source, **options)
            else:
                labels = class_labels(wanted.count, num_classes)
                videos = draw_samples(model, objective.schedule, config, wanted.count, labels=labels, **options)
        if not write:
            return
        if config.data.values != "pixels":
            print(f"warning: {path.name} is not written: data.values any are no pixels", file=sys.stderr)
            return
        if objective.source is not None:
            info = objective.source.info
            codec, _ = load_encoders(info, device=objective.device)
            videos = decode_latents(codec, latents)
    except CacheError as error:
        print(f"warning: {path.name} is not written: {error}", file=sys.stderr)
        return
    if not bool(torch.isfinite(videos).all()):
        print(f"warning: {path.name} is not written: the samples hold NaN or Inf", file=sys.stderr)
        return
    pictures = data.postprocess(videos, scale=wanted.upscale)
    for suffix in (".gif", ".mp4"):
        data.write_video(data.grid(pictures), path.with_suffix(suffix), fps=wanted.fps)
    data.contact_sheet(pictures, path.with_suffix(".png"))
