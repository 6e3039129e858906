"""`vdiff-fast sample`."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import torch
import typer

from vdiff_fast.cli.known import known_clip
from vdiff_fast.cli.options import check_guidance, parse_size
from vdiff_fast.cli.prompts import bucket_of, draw_prompts, read_prompts
from vdiff_fast.diffusion import SAMPLERS, Guidance

if TYPE_CHECKING:
    from vdiff_fast.diffusion import Churn
    from vdiff_fast.training.generate import TrainedRun


def sample(
    run: Annotated[Path, typer.Argument(help="Folder of a run, as `vdiff-fast train --out` left it.")],
    out: Annotated[Path, typer.Option(help="File to write: .mp4, .gif, or .png for a contact sheet.")],
    num: Annotated[int, typer.Option(min=1, help="How many videos, of each prompt where there are prompts.")] = 1,
    steps: Annotated[int, typer.Option(min=1, help="Sampling steps.")] = 50,
    sampler: Annotated[str, typer.Option(help=f"{', '.join(SAMPLERS)}.")] = "ddim",
    spacing: Annotated[str | None, typer.Option(help="leading, trailing, linspace, karras or edm.")] = None,
    churn: Annotated[
        str | None, typer.Option(help="S_CHURN[:S_TMIN:S_TMAX[:S_NOISE]], noise that heun and euler put back (EDM).")
    ] = None,
    seed: Annotated[int, typer.Option(help="The same seed gives the same video.")] = 0,
    guidance: Annotated[float, typer.Option(help="Guidance scale; 1 is none, more needs labels.")] = 1.0,
    guidance_rescale: Annotated[float, typer.Option(min=0, max=1, help="Keep the contrast of strong guidance.")] = 0.0,
    guidance_interval: Annotated[
        str | None, typer.Option(help="LOW:HIGH of sigma / signal, guidance is off outside, such as 0.2:5.")
    ] = None,
    guidance_batch: Annotated[str, typer.Option(help="joint (one call), split (half the memory) or auto.")] = "auto",
    prompt: Annotated[
        list[str] | None, typer.Option(help="Of runs on captions: what the video shows; repeat it for several.")
    ] = None,
    prompts: Annotated[Path | None, typer.Option(help="Of runs on captions: a text file, one prompt a line.")] = None,
    negative: Annotated[str, typer.Option(help="Of runs on captions: what guidance leads away from.")] = "",
    codec: Annotated[Path | None, typer.Option(help="Of runs on latents: its codec, where it has moved.")] = None,
    text: Annotated[
        Path | None, typer.Option(help="Of runs on captions: its text encoder, where it has moved.")
    ] = None,
    decode_memory: Annotated[
        int | None, typer.Option(min=1, help="Of runs on latents: MiB that decoding may need; sets chunks and tiles.")
    ] = None,
    label: Annotated[
        list[str] | None, typer.Option(help="Class, by name or number; repeat it for several videos.")
    ] = None,
    frames: Annotated[int | None, typer.Option(min=1, help="Frames; as trained if left out.")] = None,
    size: Annotated[str | None, typer.Option(help="Side, or HxW; as trained if left out.")] = None,
    first_frame: Annotated[
        Path | None, typer.Option(help="Picture to begin with; for runs trained with masks.")
    ] = None,
    last_frame: Annotated[
        Path | None, typer.Option(help="Picture to end with; with --first-frame, in between.")
    ] = None,
    video: Annotated[Path | None, typer.Option(help="Video to go on from (--keep) or to paint in (--box).")] = None,
    keep: Annotated[int | None, typer.Option(min=1, help="How many first frames of --video are known.")] = None,
    box: Annotated[str | None, typer.Option(help="TOPxLEFTxHEIGHTxWIDTH of --video to paint anew.")] = None,
    checkpoint: Annotated[int | None, typer.Option(help="Step of the checkpoint; the newest if left out.")] = None,
    ema: Annotated[bool, typer.Option(help="Use the averaged weights.")] = True,
    fps: Annotated[float, typer.Option(min=0.1, help="Frame rate.")] = 8.0,
    upscale: Annotated[str, typer.Option(help="Whole factor such as 4, or a size HxW.")] = "1",
    nearest: Annotated[bool, typer.Option("--nearest", help="Enlarge to hard pixels instead of bicubic.")] = False,
    dynamic_range: Annotated[bool, typer.Option("--dynamic-range", help="Stretch contrast per video.")] = False,
    smooth: Annotated[float, typer.Option(min=0, help="Gaussian over frames, sigma in frames; 0 is off.")] = 0.0,
    grid: Annotated[bool, typer.Option(help="Several videos side by side in one file, or a file for each.")] = True,
    columns: Annotated[int | None, typer.Option(min=1, help="Columns of the grid.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, ...")] = "auto",
    precision: Annotated[str, typer.Option(help="fp32, bf16 or fp16.")] = "fp32",
) -> None:
    """Draw videos from a trained run."""
    from vdiff_fast import data
    from vdiff_fast.diffusion import SamplingInterrupted
    from vdiff_fast.training.generate import class_labels, draw_samples, load_run
    from vdiff_fast.training.long_runs import sampling_use
    from vdiff_fast.training.objective import AUTOCAST_DTYPES

    known_suffixes = (".mp4", ".m4v", ".mov", ".mkv", ".gif", ".png")
    if out.suffix.lower() not in known_suffixes:
        raise ValueError(
            f"{out}: cannot write {out.suffix or 'a file without a suffix'}; choose {', '.join(known_suffixes)}"
        )
    if precision != "fp32" and precision not in AUTOCAST_DTYPES:
        raise ValueError(f"precision {precision!r} must be fp32, bf16 or fp16")
    wanted = [text for text in read_prompts(prompt, prompts) for _ in range(num)]
    trained = load_run(run, step=checkpoint, ema=ema, device=device)
    guided = Guidance(guidance, _interval(guidance_interval), guidance_rescale, batch=guidance_batch)
    options: dict[str, Any] = {
        "sampler": sampler, "steps": steps, "spacing": spacing, "seed": seed, "churn": _churn(churn),
    }  # fmt: skip
    asked_size = parse_size(size) if size else None
    _check_training(run, trained, sampling_use(first_frame is not None, last_frame is not None, keep, box is not None))
    autocast = torch.autocast(trained.schedule.device.type, AUTOCAST_DTYPES.get(precision), enabled=precision != "fp32")
    try:
        if trained.latents is not None:
            _no_pixels_alone(label=label, last_frame=last_frame, box=box)
            with autocast:
                videos = draw_prompts(
                    trained, wanted or [""] * num, negative, bucket_of(trained, frames, asked_size), guided,
                    codec=codec, text=text, memory=None if decode_memory is None else decode_memory << 20,
                    first_frame=first_frame, video=video, keep=keep, **options,
                )  # fmt: skip
        else:
            if trained.config.data.values != "pixels":
                raise ValueError(
                    f"{run} was trained on data.values any, which are no pixels: draw them in Python with "
                    "vdiff_fast.training.draw_samples, and decode them"
                )
            if wanted or negative:
                raise ValueError(f"--prompt: {run} was trained without captions; train on a cache of latents for them")
            labels = _labels(label, num, trained) if label else class_labels(num, trained.num_classes)
            check_guidance(guidance, trained.num_classes, run)
            shape = asked_size or trained.config.data.size
            height, width = (shape, shape) if isinstance(shape, int) else shape
            clip = (trained.config.data.channels, frames or trained.config.data.frames, height, width)
            deinterlace = trained.config.data.deinterlace
            known = known_clip(clip, first_frame, last_frame, video, keep, box, deinterlace=deinterlace)
            with autocast:
                videos = draw_samples(
                    trained.model, trained.schedule, trained.config, num, labels=labels, frames=frames, guidance=guided,
                    num_classes=trained.num_classes, size=(height, width), known=known, progress=True, **options,
                )  # fmt: skip
    except SamplingInterrupted as stopped:
        if not stopped.steps:
            raise
        typer.echo(f"{stopped}: writing the model's estimate of the finished video", err=True)
        videos = stopped.x0
    scale = parse_size(upscale)
    mode: Literal["nearest", "bicubic"] = "nearest" if nearest else "bicubic"
    pictures = data.postprocess(
        videos, range="dynamic" if dynamic_range else "clamp", scale=scale, mode=mode, smoothing=smooth
    )
    for path in _write(pictures, out, fps, grid, columns, wanted):
        print(path)


def _check_training(run: Path, trained: TrainedRun, use: str | None) -> None:
    """Raise where a run with masks lacks the role that this use needs; say how a free clip of several strides moves."""
    from vdiff_fast.training.long_runs import USES, require_roles, stride_note

    masks = trained.config.diffusion.masks
    if use is None:
        # Without key frames to make, clips of all strides were drawn freely, and so is this one.
        note = stride_note(trained.config.data.all_strides) if masks.get("global") else None
        if note is not None:
            typer.echo(f"note: {note}", err=True)
    elif masks:  # without any, the model itself says that it has no input for what is known
        require_roles(run, masks, list(USES[use]), use)


def _churn(text: str | None) -> Churn | None:
    from vdiff_fast.diffusion import Churn

    if text is None:
        return None
    try:
        numbers = [float(part) for part in text.split(":")]
    except ValueError:
        numbers = []
    if len(numbers) not in (1, 3, 4):
        raise ValueError(f"--churn {text!r}: give S_CHURN, S_CHURN:S_TMIN:S_TMAX or all four, such as 40:0.05:50:1.003")
    return Churn(*numbers)


def _interval(text: str | None) -> tuple[float, float] | None:
    if text is None:
        return None
    low, _, high = text.partition(":")
    try:
        return (float(low), float(high))
    except ValueError:
        raise ValueError(f"--guidance-interval {text!r}: give two numbers LOW:HIGH, such as 0.2:5") from None


def _labels(given: list[str], num: int, trained: TrainedRun) -> torch.Tensor:
    from vdiff_fast.training.classes import label_number

    numbers = [label_number(text, trained.num_classes, trained.classes) for text in given]
    if len(numbers) not in (1, num):
        raise ValueError(f"--label was given {len(numbers)} times for {num} videos; give it once or {num} times")
    return torch.tensor(numbers * num if len(numbers) == 1 else numbers)


def _no_pixels_alone(**options: object) -> None:
    """Raise ValueError for options that a run on latents does not take."""
    for name, value in options.items():
        if value is not None:
            raise ValueError(
                f"--{name.replace('_', '-')}: a run on latents takes --prompt, --first-frame, or --video with --keep"
            )


def _write(
    videos: torch.Tensor, out: Path, fps: float, grid: bool, columns: int | None, prompts: list[str]
) -> list[Path]:  # fmt: skip
    """One file with all videos, or NAME_0, NAME_1, ...; what the writer changed is said on stderr.

    The prompts go into the files' metadata, those of a grid one a line.
    """
    from vdiff_fast import data

    if out.suffix.lower() == ".png":
        return [data.contact_sheet(videos, out)]
    if grid or len(videos) == 1:
        together = videos[0] if len(videos) == 1 else data.grid(videos, columns=columns)
        files = {out: (together, "\n".join(dict.fromkeys(prompts)))}
    else:
        said = prompts or [""] * len(videos)
        files = {out.with_stem(f"{out.stem}_{i}"): pair for i, pair in enumerate(zip(videos, said))}
    written = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", data.VideoPaddedWarning)
        for path, (video, comment) in files.items():
            result = data.write_video(video, path, fps=fps, comment=comment or None)
            if result.note:
                typer.echo(f"note: {result.note}", err=True)
            written.append(result.path)
    return written
