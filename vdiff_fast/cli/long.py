"""`vdiff-fast long` and `vdiff-fast interpolate`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import torch
import typer
from torch import Tensor

from vdiff_fast.cli.known import read_picture, read_video
from vdiff_fast.cli.options import check_guidance

if TYPE_CHECKING:
    from vdiff_fast.diffusion import LongVideoPlan
    from vdiff_fast.training.generate import TrainedRun
    from vdiff_fast.training.masks import Role

Run = Annotated[Path, typer.Argument(help="Folder of a run trained with masks.")]
Out = Annotated[Path, typer.Option(help="File to write: .mp4 or .gif.")]
Steps = Annotated[int, typer.Option(min=1, help="Sampling steps of every clip.")]
Sampler = Annotated[str, typer.Option(help="ddim, ddpm, dpmpp_2m, euler, ...")]
Spacing = Annotated[str, typer.Option(help="leading, trailing, linspace, karras or edm.")]
Seed = Annotated[int, typer.Option(help="The same seed gives the same video.")]
Label = Annotated[str | None, typer.Option(help="Class, by name or number, for a run with labels.")]
BatchSize = Annotated[int, typer.Option(min=1, help="Clips denoised side by side.")]
Segments = Annotated[Path | None, typer.Option(help="Folder of finished clips; OUT.segments if left out.")]
Fps = Annotated[float, typer.Option(min=0.1, help="Frame rate.")]
Upscale = Annotated[int, typer.Option(min=1, help="Enlarge by a whole factor.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, ...")]


def long(
    run: Run,
    out: Out,
    clip: Annotated[int | None, typer.Option(help="Frames of a clip; as trained if left out.")] = None,
    levels: Annotated[
        int | None, typer.Option(help="How deep; as many as trained strides, more where --length needs them.")
    ] = None,
    length: Annotated[int | None, typer.Option(help="Frames; all that the levels make if left out.")] = None,
    seed: Seed = 0,
    steps: Steps = 25,
    sampler: Sampler = "ddim",
    spacing: Spacing = "trailing",
    guidance: Annotated[float, typer.Option(help="Guidance scale; 1 is none, more needs labels.")] = 1.0,
    label: Label = None,
    first_frame: Annotated[Path | None, typer.Option(help="Picture to begin with.")] = None,
    autoregressive: Annotated[
        bool, typer.Option("--autoregressive", help="After the first clip, continue the last frames, clip by clip.")
    ] = False,
    overlap: Annotated[int | None, typer.Option(min=1, help="Frames that such a clip continues; half a clip.")] = None,
    batch_size: BatchSize = 8,
    segments: Segments = None,
    fps: Fps = 8.0,
    upscale: Upscale = 1,
    device: Device = "auto",
) -> None:
    """Make a video longer than the model's clips; a run that was stopped goes on. torchrun shares it among ranks."""
    from vdiff_fast import diffusion

    if overlap is not None and not autoregressive:
        raise ValueError(f"--overlap {overlap} says how clips continue each other: give --autoregressive, too")
    trained, frame_shape = _load(run, out, device)
    check_guidance(guidance, trained.num_classes, run)
    known = None if first_frame is None else read_picture(first_frame, frame_shape)
    clip = trained.config.data.frames if clip is None else clip
    frames, plan = _plan(trained, clip, levels, length, autoregressive, known is not None)
    overlap = (clip // 2 if overlap is None else overlap) if autoregressive else 0
    _check_training(run, trained, plan, known is not None, overlap)
    options: dict[str, Any] = {
        "seed": seed, "y": _label(label, trained), "progress": True, "steps": steps, "sampler": sampler,
        "spacing": spacing, "guidance": guidance, "target": trained.config.diffusion.target, "clip": 1.0,
    }  # fmt: skip
    parts = out.with_name(out.name + ".segments") if segments is None else segments
    _say(f"{plan} -> {parts}")
    hierarchy: dict[str, Any] = {"frame_shape": frame_shape, "first_frame": known, "batch_size": batch_size}
    video = diffusion.sample_long(trained.model, plan, trained.schedule, out=parts, **hierarchy, **options)
    if autoregressive:
        _say(f"then {frames} frames by clips that continue {overlap} frames, one after the other")
        video = diffusion.sample_autoregressive(
            trained.model, frames, trained.schedule, start=video[0], clip_frames=clip, overlap=overlap,
            out=parts / "autoregressive", **options,
        )  # fmt: skip
    _write(video, out, fps, upscale)


def interpolate(
    run: Run,
    video: Annotated[Path, typer.Argument(help="Video whose frames are kept, at the size of the run.")],
    out: Out,
    clip: Annotated[int | None, typer.Option(help="Frames from one to the next, both counted; as trained.")] = None,
    seed: Seed = 0,
    steps: Steps = 25,
    sampler: Sampler = "ddim",
    spacing: Spacing = "trailing",
    label: Label = None,
    batch_size: BatchSize = 8,
    segments: Segments = None,
    fps: Fps = 8.0,
    upscale: Upscale = 1,
    device: Device = "auto",
) -> None:
    """Make new frames between those of a video."""
    from vdiff_fast import diffusion
    from vdiff_fast.training.long_runs import require_roles

    trained, frame_shape = _load(run, out, device)
    require_roles(run, trained.config.diffusion.masks, ["local"], "interpolate")
    keys = read_video(video, frame_shape, deinterlace=trained.config.data.deinterlace)
    clip = trained.config.data.frames if clip is None else clip
    result = diffusion.interpolate(
        trained.model, keys, trained.schedule, clip_frames=clip, seed=seed, steps=steps, sampler=sampler,
        spacing=spacing, y=_label(label, trained), batch_size=batch_size, progress=True, clip=1.0,
        target=trained.config.diffusion.target,
        out=out.with_name(out.name + ".segments") if segments is None else segments,
    )  # fmt: skip
    _write(result, out, fps, upscale)


def _load(run: Path, out: Path, device: str) -> tuple[TrainedRun, tuple[int, int, int]]:
    """The run, on this rank's device, and (C, H, W) of its frames."""
    from vdiff_fast.training import distributed
    from vdiff_fast.training.generate import load_run

    if out.suffix.lower() not in (".mp4", ".m4v", ".mov", ".mkv", ".gif"):
        raise ValueError(f"{out}: cannot write {out.suffix or 'a file without a suffix'}; choose .mp4 or .gif")
    trained = load_run(run, device=device)
    if trained.latents is not None:
        raise ValueError(
            f"{run} was trained on latents; long videos are made of pixels so far: use vdiff-fast sample --frames, or "
            "--video with --keep to go on from a clip"
        )
    distributed.start(trained.schedule.device)
    size = trained.config.data.size
    height, width = (size, size) if isinstance(size, int) else size
    if not trained.config.diffusion.masks:
        raise ValueError(
            f"{run} was trained without masks, so its model cannot be told what is known; "
            "train it with --masks global,local (and --strides for several levels)"
        )
    return trained, (trained.config.data.channels, height, width)


def _plan(
    trained: TrainedRun, clip: int, levels: int | None, length: int | None, autoregressive: bool, first_frame: bool
) -> tuple[int, LongVideoPlan]:
    """Frames of the video, and the plan of what diffusion over diffusion makes of it: all, or the first clip.

    One level for each trained stride makes a video move as in training; more where the length asks for them. A chain
    of clips may be of any length, and one that begins with a picture has neighbouring frames from the start.
    """
    from vdiff_fast.diffusion import LongVideoPlan, long_video_plan

    if levels is None:
        levels = len(set(trained.config.data.all_strides))
        if length is not None and clip >= 3 and not autoregressive:
            levels = max(levels, LongVideoPlan.levels_for(clip, length))
    if not autoregressive:
        plan = long_video_plan(clip, levels, length=length)
        return plan.frames, plan
    frames = long_video_plan(clip, levels).frames if length is None else length
    return frames, long_video_plan(clip, 1 if first_frame else levels, length=min(clip, frames))


def _check_training(run: Path, trained: TrainedRun, plan: LongVideoPlan, first_frame: bool, overlap: int) -> None:
    """Raise where the run lacks a role that the video needs; warn where it will not move as in training.

    `overlap` is that of the clips that follow the plan's, 0 where there are none.
    """
    from vdiff_fast.training.long_runs import require_roles, time_scale_note

    needed: list[Role] = ["first" if first_frame else "global"]
    if plan.levels > 1 or not overlap:
        needed.append("local")
    if overlap:
        needed.append("first" if overlap == 1 else "prediction")
    command = "long" + " --autoregressive" * bool(overlap) + " --first-frame" * first_frame
    require_roles(run, trained.config.diffusion.masks, list(dict.fromkeys(needed)), command)
    note = time_scale_note(plan, trained.config.data.all_strides, first_frame)
    if note is not None:
        _say(f"warning: {note}", sys.stderr)


def _label(label: str | None, trained: TrainedRun) -> Tensor | None:
    from vdiff_fast.training.classes import label_number

    if label is None:
        return torch.zeros(1, dtype=torch.int64) if trained.num_classes else None
    return torch.tensor([label_number(label, trained.num_classes, trained.classes)])


def _say(text: str, file: TextIO | None = None) -> None:
    from vdiff_fast.training import distributed

    if distributed.rank() == 0:
        print(text, file=file, flush=True)


def _write(video: Tensor, out: Path, fps: float, upscale: int) -> None:
    """Write the file on rank 0, and leave the process group."""
    from vdiff_fast import data
    from vdiff_fast.training import distributed

    if distributed.rank() == 0:
        data.write_video(data.postprocess(video, scale=upscale)[0], out, fps=fps)
        print(out)
    distributed.stop()
