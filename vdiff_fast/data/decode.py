"""Decode videos to uint8 frames through PyAV: whole files, or just the frames that one clip needs."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch

from .errors import CorruptVideoError, TruncatedVideoError
from .scan import (
    DEFAULT_TOLERANCE,
    SWS_ACCURATE_RND,
    SWS_BICUBIC,
    Tolerance,
    VideoScan,
    decode_packets,
    open_video,
    scan,
)

if TYPE_CHECKING:
    from av.video.frame import VideoFrame

# swscale's default rounding darkens YUV video by one level of 255 on average; with SWS_ACCURATE_RND and
# SWS_FULL_CHR_H_INT it does not, at 1.6 times the cost. As numbers, since PyAV names them only from version 18 on.
_ACCURATE = SWS_BICUBIC | SWS_ACCURATE_RND | 0x2000

# Applied to each frame (H, W, 3) as it is decoded, so that a long video never lies in memory at full size.
Convert = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class DecodedVideo:
    """`frames`: uint8 in the layout asked for; `times`: seconds from the first frame; `scan`: the file."""

    frames: torch.Tensor
    times: np.ndarray
    fps: float
    scan: VideoScan


def frame_to_rgb(frame: VideoFrame, width: int, height: int, rotation: int = 0) -> np.ndarray:
    """One frame as uint8 (H, W, 3), upright, with square pixels, transparency composed over black.

    `width` and `height` are the displayed size before rotation; a frame of another size (the stream changed) is scaled.
    """
    alpha = any(component.is_alpha for component in frame.format.components)
    target = "rgba" if alpha else "rgb24"
    pixels = frame.reformat(width=width, height=height, format=target, interpolation=_ACCURATE).to_ndarray()
    if alpha:
        opacity = pixels[..., 3:].astype(np.uint16)
        pixels = ((pixels[..., :3] * opacity + 127) // 255).astype(np.uint8)
    if rotation:
        pixels = np.rot90(pixels, rotation // 90)
    return np.ascontiguousarray(pixels)


def read_frames(
    video: VideoScan, indices: Sequence[int] | np.ndarray, *, convert: Convert | None = None, threads: int = 0,
    tolerance: Tolerance = DEFAULT_TOLERANCE,
) -> np.ndarray:  # fmt: skip
    """The frames with these numbers (not decreasing, repeats allowed) as uint8 (len(indices), H, W, C).

    Seeks to the key frame before the first of them and checks each frame's time stamp against the scan; a file that
    cannot seek exactly is decoded from its start.

    Errors: `IndexError`; `TruncatedVideoError` if the file no longer has the frames that the scan saw;
    `CorruptVideoError` if a wanted frame is damaged and `tolerance` allows no damage.
    """
    wanted = np.unique(np.asarray(indices, dtype=np.int64))
    if not len(wanted) or wanted[0] < 0 or wanted[-1] >= video.decoded:
        raise IndexError(f"{video.name}: frames {list(indices)[:4]}... asked of {video.decoded}")
    accept_damage = tolerance.max_corrupt > 0
    found = {}
    if video.seekable and wanted[0] > 0:
        found = _collect(video, wanted, convert, threads, accept_damage, seek=True)
    if len(found) < len(wanted):
        found = _collect(video, wanted, convert, threads, accept_damage, seek=False)
    if len(found) < len(wanted):
        lost = next(int(i) for i in wanted if int(i) not in found)
        raise TruncatedVideoError(f"{video.name}: frame {lost} of {video.decoded} is gone or damaged; scan it again")
    return np.stack([found[int(i)] for i in indices])


def _collect(
    video: VideoScan, wanted: np.ndarray, convert: Convert | None, threads: int, accept_damage: bool, *, seek: bool
) -> dict[int, np.ndarray]:
    """Wanted frames by number; fewer than wanted if a seek landed too late or on frames that lack their references."""
    found: dict[int, np.ndarray] = {}
    missing = {int(i) for i in wanted}
    for index, frame in _numbered(video, threads, int(wanted[0]) if seek else 0):
        if index > wanted[-1]:
            break
        if index not in missing:
            continue
        if frame.is_corrupt and not accept_damage:
            if seek:
                return found
            raise CorruptVideoError(f"{video.name}: frame {index} of {video.decoded} is flagged corrupt")
        pixels = frame_to_rgb(frame, video.stored_width, video.stored_height, video.rotation)
        found[index] = pixels if convert is None else convert(pixels)
        missing.discard(index)
        if not missing:
            break
    return found


def _numbered(video: VideoScan, threads: int, start: int) -> Iterator[tuple[int, VideoFrame]]:
    """(number, frame) from `start` or before on: counted from the file's start, or told by time stamps after a seek."""
    with open_video(video.path, threads=threads) as (container, stream):
        if not start:
            yield from enumerate(decode_packets(container, stream))
            return
        container.seek(int(video.pts[start]), stream=stream, backward=True)
        for frame in decode_packets(container, stream):
            if frame.pts is None:
                return
            index = int(np.searchsorted(video.pts, frame.pts))
            if index >= video.decoded or video.pts[index] != frame.pts:
                return
            yield index, frame


def decode(
    path: str | os.PathLike[str] | VideoScan, *, fps: float | None = None, convert: Convert | None = None,
    layout: Literal["THWC", "CTHW"] = "THWC", tolerance: Tolerance = DEFAULT_TOLERANCE, threads: int = 0,
) -> DecodedVideo:  # fmt: skip
    """A whole video file as uint8 frames, at its own rate or resampled to `fps` by its time stamps.

    Shapes: `(T, H, W, C)`, or `(C, T, H, W)` as a view of the same memory. C is 3 (RGB) unless `convert` changes it.

    Errors: `UnreadableVideoError`, `EmptyVideoError`, `TruncatedVideoError`, `CorruptVideoError` beyond `tolerance`.
    """
    if layout not in ("THWC", "CTHW"):
        raise ValueError(f"layout must be 'THWC' or 'CTHW', got {layout!r}")
    video = path if isinstance(path, VideoScan) else scan(path, threads=threads)
    problem = video.problem(tolerance)
    if problem is not None:
        raise problem
    order = video.grid(fps)
    stored = read_frames(video, order, convert=convert, threads=threads, tolerance=tolerance)
    frames = torch.from_numpy(stored)
    rate = video.fps if fps is None else fps
    times = np.arange(len(order)) / rate if fps is not None or video.variable else video.times
    return DecodedVideo(frames if layout == "THWC" else frames.permute(3, 0, 1, 2), times, rate, video)


_SUFFIXES = ".mp4 .m4v .mov .avi .mkv .webm .gif .apng .mpg .mpeg .wmv .flv .ogv .ts .m2ts .mts .3gp .y4m"
VIDEO_SUFFIXES = frozenset(_SUFFIXES.split())


def find_videos(root: str | os.PathLike[str]) -> list[Path]:
    """Every file below `root` whose name ends like a video's, sorted by path; hidden files and folders are left out."""
    root = Path(root)
    if root.is_file():
        return [root]
    if not root.is_dir():
        raise FileNotFoundError(f"{root}: no such file or folder")
    found = []
    for folder, subfolders, names in os.walk(root, followlinks=True):
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        found += [
            Path(folder, name)
            for name in names
            if Path(name).suffix.lower() in VIDEO_SUFFIXES and not name.startswith(".")
        ]
    return sorted(found)
