"""Long videos by diffusion over diffusion: level by level, all clips of a level independent of each other."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vdiff_fast import layout
from vdiff_fast.diffusion.conditioning import ConditionError, frame_mask
from vdiff_fast.diffusion.long.batches import ClipBatches, open_files
from vdiff_fast.diffusion.long.clips import ClipDenoiser, fingerprint
from vdiff_fast.diffusion.long.plan import LongVideoPlan, Segment, long_video_plan
from vdiff_fast.diffusion.schedule import NoiseSchedule


def sample_long(
    model: Callable[..., Tensor],
    plan: LongVideoPlan,
    schedule: NoiseSchedule,
    *,
    frame_shape: tuple[int, int, int],
    seed: int = 0,
    first_frame: Tensor | None = None,
    y: Tensor | None = None,
    context: Tensor | None = None,
    batch_size: int = 8,
    fixed_batch: int | None = 4,
    out: Path | str | None = None,
    progress: bool = False,
    **options: Any,
) -> Tensor:
    """Level 0: `plan.clip` key frames from noise; level l: the frames between neighbours, both ends given.

    All clips of a level go through the model in batches and, where torch.distributed is initialised, on all ranks.
    Clip number n of the whole, uncut plan draws the noise of sample n, so the video is the same for any number of
    ranks, any batch size, and any length: a shorter plan is the beginning of the longer one. Neighbouring clips share
    their end frame exactly. With `fixed_batch` all this holds bit for bit.

    >>> plan = long_video_plan(clip=8, levels=3)                                   # 344 frames
    >>> video = sample_long(model, plan, schedule, frame_shape=(1, 32, 32), steps=25, target="v", clip=1.0)

    Args:
        model: model(x, t, cond=...), trained with masks in the roles "global" and "local" on clips of `plan.clip`
            frames; `cond` is that of `condition`.
        plan: see `long_video_plan`.
        schedule: the noise schedule that the model was trained with, on the model's device.
        frame_shape: (C, H, W).
        seed: the same seed gives the same video.
        first_frame: (C, H, W) in [-1, 1], the first key frame, where it is given.
        y, context: the model's other inputs, for one video: (1,) labels, (1, L, D) tokens.
        batch_size: clips denoised side by side.
        fixed_batch: clips of every call of the model, the last one filled up: kernels may add up in another order for
            another batch size. None: as many as there are, equal up to rounding (1e-6 per call in fp32).
        out: folder for the clips, written as they end; what is there already is not made again, by any number of ranks
            that see the folder. None keeps them in memory alone.
        progress: show bars of clips and, nested, of steps.
        **options: of `sample`: sampler, steps, target, guidance, uncond, eta, spacing, clip, ...

    Returns:
        (1, C, plan.frames, H, W), float32 on the CPU, the same on every rank.

    Raises:
        ConditionError: the model knows no masks or not so many frames, first_frame has another size, or the video does
            not fit into memory.
        SegmentError: `out` holds clips of another video.
        ValueError: those of `sample`.

    Source: Yin et al. 2023, "NUWA-XL: Diffusion over Diffusion for eXtremely Long Video Generation", section 3.2.
    """
    channels, height, width = _frame_shape(frame_shape)
    _require_memory(plan, channels * height * width)
    clips = ClipDenoiser(
        model, schedule, (channels, plan.clip, height, width), seed, fixed_batch, _inputs(y, context), options
    )
    made: dict[int, Tensor] = {}
    if first_frame is not None:
        made[0] = _given(first_frame, frame_shape, "first_frame")
    files = open_files(out, {"levels": plan.levels, "first_frame": fingerprint(first_frame)} | clips.settings())
    with ClipBatches(clips, files, batch_size, plan.clips, progress) as draw:
        for level in range(plan.levels):
            segments = list(plan.segments(level))
            positions = tuple(made) if level == 0 else segments[0].known
            known = partial(_known_frames, clips.shape, segments, positions, made)
            drawn = draw(level, plan.first_clip(level), known, len(segments), frame_mask(plan.clip, positions))
            for segment, frames in zip(segments, drawn):
                made |= {n: frames[:, k] for k, n in enumerate(segment.frames) if n not in made}
    return _video(made[n] for n in range(plan.frames))


def sample_autoregressive(
    model: Callable[..., Tensor],
    frames: int,
    schedule: NoiseSchedule,
    *,
    start: Tensor,
    clip_frames: int,
    overlap: int,
    seed: int = 0,
    y: Tensor | None = None,
    context: Tensor | None = None,
    out: Path | str | None = None,
    progress: bool = False,
    **options: Any,
) -> Tensor:
    """Clip after clip, each continuing the last `overlap` frames: what diffusion over diffusion is compared with.

    One clip waits for the other, and what one gets wrong the next ones go on from.

    Args:
        model: model(x, t, cond=...), trained with masks in the role "prediction".
        frames: of the finished video.
        start: (C, n, H, W) in [-1, 1], n >= overlap: the beginning of the video.
        clip_frames: frames that the model makes at once; overlap of them are known.
        schedule, seed, y, context, out, progress, options: see `sample_long`; clip n draws the noise of sample n.

    Returns:
        (1, C, frames, H, W), float32 on the CPU.

    Raises:
        ConditionError: numbers that do not fit, or a model that knows no masks or not so many frames.
        SegmentError: `out` holds clips of another video.

    Source: Ho et al. 2022, "Video Diffusion Models", section 3.1 (with a trained condition instead of a guided one).
    """
    if not 1 <= overlap < clip_frames:
        raise ConditionError(
            f"overlap must be within [1, {clip_frames - 1}], so that clips of {clip_frames} go on; got {overlap}"
        )
    if start.dim() != 4 or start.shape[1] < overlap:
        raise ConditionError(f"start must be (C, n, H, W) with n >= overlap {overlap}, got {tuple(start.shape)}")
    if frames < 1:
        raise ConditionError(f"frames must be at least 1, got {frames}")
    channels, given, height, width = start.shape
    video = list(start.detach().float().cpu().unbind(1))
    clips = ClipDenoiser(
        model, schedule, (channels, clip_frames, height, width), seed, None, _inputs(y, context), options
    )
    files = open_files(out, {"overlap": overlap, "start": fingerprint(start)} | clips.settings())
    count = max(0, -(-(frames - given) // (clip_frames - overlap)))
    mask = frame_mask(clip_frames, range(overlap))
    with ClipBatches(clips, files, 1, count, progress) as draw:
        for index in range(count):
            known = torch.zeros(clips.shape, device="cpu")
            known[:, :overlap] = torch.stack(video[-overlap:], dim=1)
            video += list(draw.one(index, known, mask)[:, overlap:].unbind(1))
    return _video(video[:frames])


def interpolate(
    model: Callable[..., Tensor],
    video: Tensor,
    schedule: NoiseSchedule,
    *,
    clip_frames: int,
    seed: int = 0,
    y: Tensor | None = None,
    context: Tensor | None = None,
    batch_size: int = 8,
    fixed_batch: int | None = 4,
    out: Path | str | None = None,
    progress: bool = False,
    **options: Any,
) -> Tensor:
    """`clip_frames` - 2 new frames between each two of a video, as the levels of `sample_long` below the first.

    Args:
        model: model(x, t, cond=...), trained with masks in the role "local".
        video: (C, n, H, W) in [-1, 1], n >= 2; its frames stay as they are.
        clip_frames: frames of a clip, both ends counted.
        schedule, seed, y, context, batch_size, fixed_batch, out, progress, options: see `sample_long`.

    Returns:
        (1, C, (n - 1) (clip_frames - 1) + 1, H, W), float32 on the CPU.

    Raises:
        ConditionError, SegmentError: as `sample_long`.
    """
    if video.dim() != 4 or video.shape[1] < 2:
        raise ConditionError(f"video must be (C, n, H, W) with at least 2 frames, got {tuple(video.shape)}")
    long_video_plan(clip_frames, 1)
    channels, given, height, width = video.shape
    keys = video.detach().float().cpu()
    clips = ClipDenoiser(
        model, schedule, (channels, clip_frames, height, width), seed, fixed_batch, _inputs(y, context), options
    )
    files = open_files(out, {"interpolated": fingerprint(keys)} | clips.settings())

    def ends(index: int) -> Tensor:
        known = torch.zeros(clips.shape, device="cpu")
        known[:, 0], known[:, -1] = keys[:, index], keys[:, index + 1]
        return known

    with ClipBatches(clips, files, batch_size, given - 1, progress) as draw:
        drawn = draw(0, 0, ends, given - 1, frame_mask(clip_frames, (0, -1)))
    return _video([frame for frames in drawn for frame in frames[:, :-1].unbind(1)] + [keys[:, -1]])


def _inputs(y: Tensor | None, context: Tensor | None) -> dict[str, Tensor]:
    for name, value in (("y", y), ("context", context)):
        if value is not None and len(value) != 1:
            raise ConditionError(f"{name} is for one video, so its first size is 1; got {tuple(value.shape)}")
    return {name: value for name, value in (("y", y), ("context", context)) if value is not None}


def _frame_shape(shape: Sequence[int]) -> tuple[int, int, int]:
    if len(shape) != 3 or min(shape) < 1:
        raise ConditionError(f"frame_shape must be (C, H, W), got {tuple(shape)}")
    channels, height, width = shape
    return channels, height, width


def _require_memory(plan: LongVideoPlan, frame_values: int) -> None:
    """Raise ConditionError where the finished video, float32, is larger than the machine's memory."""
    if not hasattr(os, "sysconf") or "SC_PHYS_PAGES" not in os.sysconf_names:
        return
    memory, frame = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"), 4 * frame_values
    if plan.frames * frame > memory:
        raise ConditionError(
            f"a video of {plan.frames} frames takes {plan.frames * frame / 2**30:.0f} GiB, more than this machine's "
            f"{memory / 2**30:.0f} GiB; use fewer levels, or a length of at most {memory // frame}"
        )


def _given(frame: Tensor, shape: Sequence[int], name: str) -> Tensor:
    if tuple(frame.shape) != tuple(shape):
        raise ConditionError(
            f"{name} is {tuple(frame.shape)}, the video's frames are (C, H, W) = {tuple(shape)}; resize it to these"
        )
    return frame.detach().float().cpu()


def _known_frames(
    shape: Sequence[int], segments: Sequence[Segment], positions: Sequence[int], made: Mapping[int, Tensor], index: int
) -> Tensor:
    """(C, T, H, W) of a segment's clip with the frames made so far at `positions`, zeros elsewhere."""
    known = torch.zeros(tuple(shape), device="cpu")
    for position in positions:
        known[:, position] = made[segments[index].frames[position]]
    return known


def _video(frames: Iterable[Tensor]) -> Tensor:
    return layout.canonical(torch.stack(list(frames), dim=1).unsqueeze(0))
