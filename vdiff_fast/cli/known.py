"""What `vdiff-fast sample` is told of a clip: pictures, a video, or a video with a hole."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor


def read_picture(path: Path, shape: tuple[int, int, int]) -> Tensor:
    """A picture as (C, H, W) in [-1, 1].

    Raises:
        ValueError: another size than `shape`, or those of `vdiff_fast.data.read_picture`.
    """
    from vdiff_fast import data

    pixels = torch.from_numpy(data.read_picture(path)).permute(2, 0, 1)
    return _sized(pixels.unsqueeze(1), shape, path)[:, 0]


def read_video(path: Path, shape: tuple[int, int, int], *, deinterlace: bool = False) -> Tensor:
    """A video as (C, n, H, W) in [-1, 1]; one channel is its luma (ITU-R BT.601).

    Raises:
        ValueError: another size than `shape`, or those of `vdiff_fast.data.decode`.
    """
    from vdiff_fast import data

    return _sized(data.decode(path, layout="CTHW", deinterlace=deinterlace).frames, shape, path)


def _sized(pixels: Tensor, shape: tuple[int, int, int], path: Path) -> Tensor:
    from vdiff_fast.data.transforms import to_gray

    if tuple(pixels.shape[-2:]) != shape[1:]:
        raise ValueError(
            f"{path}: {pixels.shape[-2]}x{pixels.shape[-1]}, the video's frames are {shape[1]}x{shape[2]}; resize it"
        )
    return (pixels if shape[0] == 3 else to_gray(pixels)).float() / 127.5 - 1


def known_clip(
    shape: tuple[int, int, int, int], first_frame: Path | None, last_frame: Path | None, video: Path | None,
    keep: int | None, box: str | None, *, deinterlace: bool = False,
) -> tuple[Tensor, Tensor] | None:  # fmt: skip
    """(known (1, C, T, H, W), mask) for `condition`; None where nothing is known.

    Args:
        shape: (C, T, H, W) of the clip.
        first_frame, last_frame: pictures: one continues it, both are filled in between.
        video: its first `keep` frames are known (prediction, extension), or all of it outside `box` (in-painting).
        box: "TOPxLEFTxHEIGHTxWIDTH".
        deinterlace: whether the video's interlaced frames are made whole.

    Raises:
        ValueError: options that do not go together, or sizes that do not fit.
    """
    from vdiff_fast.diffusion import box_mask, frame_mask

    channels, frames, height, width = shape
    frame_shape = (channels, height, width)
    given = {position: path for position, path in ((0, first_frame), (frames - 1, last_frame)) if path is not None}
    if video is None:
        if keep is not None or box is not None:
            raise ValueError("--keep and --box say which part of --video is known: give --video, too")
        known = torch.zeros(1, *shape)
        for position, path in given.items():
            known[0, :, position] = read_picture(path, frame_shape)
        return _with_something_open(known, frame_mask(frames, given)) if given else None
    if given or (keep is None) == (box is None):
        raise ValueError("--video takes either --keep FRAMES or --box, and no --first-frame or --last-frame")
    known = torch.zeros(1, *shape)
    content = read_video(video, frame_shape, deinterlace=deinterlace)[:, :frames]
    needed = frames if keep is None else keep
    if content.shape[1] < min(needed, frames):
        raise ValueError(
            f"{video} has {content.shape[1]} frame(s), {needed} of a clip of {frames} are to be known: give a longer "
            "video, " + ("a smaller --keep" if box is None else "or fewer --frames")
        )
    known[0, :, : content.shape[1]] = content
    mask = frame_mask(frames, range(min(needed, frames))) if box is None else box_mask((height, width), _box(box))
    return _with_something_open(known, mask)


def _with_something_open(known: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    if bool(mask.all()):
        raise ValueError(
            f"every frame of the clip of {known.shape[2]} is known, nothing is left to draw: know fewer, or ask for "
            "more with --frames"
        )
    return known, mask


def _box(text: str) -> tuple[int, ...]:
    parts = text.lower().split("x")
    if len(parts) != 4 or not all(part.isdigit() for part in parts):
        raise ValueError(f"--box {text!r}: give TOPxLEFTxHEIGHTxWIDTH in pixels, such as 8x8x16x16")
    return tuple(int(part) for part in parts)
