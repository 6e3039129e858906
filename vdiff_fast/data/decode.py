"""Decode videos to uint8 frames through PyAV: whole files, or just the frames that one clip needs."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch

from vdiff_fast._files import printable
from vdiff_fast.data.container import decode_packets, import_av, open_video, reading
from vdiff_fast.data.deinterlace import deinterlaced
from vdiff_fast.data.errors import CorruptVideoError, UnreadableVideoError
from vdiff_fast.data.pixels import frame_orientation, frame_to_rgb
from vdiff_fast.data.scan import DEFAULT_TOLERANCE, Tolerance, VideoScan, scan

if TYPE_CHECKING:
    from av.video.frame import VideoFrame

# Frames ahead of the wanted one at which a seek is tried before a file is read from its start: streams with pictures
# that build on others across key frames, or that are refreshed bit by bit, need a start further ahead.
_SEEKS_BACK = (0, 12, 60, 300)

# Applied to each frame (H, W, 3) as it is decoded, so that a long video never lies in memory at full size.
Convert = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class DecodedVideo:
    """`frames`: uint8 in the layout asked for; `times`: seconds from the first frame; `scan`: the file."""

    frames: torch.Tensor
    times: np.ndarray
    fps: float
    scan: VideoScan


def read_frames(
    video: VideoScan, indices: Sequence[int] | np.ndarray, *, convert: Convert | None = None, threads: int = 0,
    tolerance: Tolerance = DEFAULT_TOLERANCE, deinterlace: bool = False,
) -> np.ndarray:  # fmt: skip
    """The frames with these numbers (not decreasing, repeats allowed) as uint8 (len(indices), H, W, C).

    Seeks to the key frame before the first of them and compares each frame's time stamp and sum with the scan. Where a
    seek gives other frames (some containers seek to pictures that build on earlier ones), it starts further ahead, and
    at last from the file's start.

    Errors: `IndexError`; `TruncatedVideoError` if the file no longer gives the frames that the scan saw;
    `CorruptVideoError` if a wanted frame is damaged and `tolerance` allows no damage.
    """
    wanted = np.unique(np.asarray(indices, dtype=np.int64))
    if not len(wanted) or wanted[0] < 0 or wanted[-1] >= video.decoded:
        raise IndexError(f"{video.name}: frames {list(indices)[:4]}... asked of {video.decoded}")
    accept_damage = tolerance.max_corrupt > 0
    # The frame before has a field that belongs to the first one's picture.
    first = max(0, int(wanted[0]) - int(deinterlace))
    for start in _starts(video, first):
        frames = _numbered(video, threads, start, first, accept_damage)
        if deinterlace:
            frames = _from_number(deinterlaced(frames), int(wanted[0]))
        found = _collect(video, frames, wanted, convert, accept_damage, last_try=not start)
        if len(found) == len(wanted):
            return np.stack([found[int(i)] for i in indices])
    lost = next(int(i) for i in wanted if int(i) not in found)
    raise video.lost(lost)


def read_picture(path: str | os.PathLike[str]) -> np.ndarray:
    """A picture (PNG, JPEG, WebP, TIFF, BMP, AVIF, ...), or the first frame of a video, as uint8 RGB (H, W, 3).

    The pixels are those that `decode` makes of a video's frames: turned as EXIF says, 16 bits rounded to 8, over black
    where transparent.

    Errors: `FileNotFoundError`; `UnreadableVideoError` for what is no picture; `CorruptVideoError` for a damaged one.
    """
    name = printable(Path(path).name)
    try:
        with open_video(path) as (container, stream):
            frame = next(decode_packets(container, stream), None)
            if frame is None:
                raise UnreadableVideoError(f"{name}: no picture")
            if frame.is_corrupt:
                raise CorruptVideoError(f"{name}: the picture is damaged")
            with reading(path):
                orientation = frame_orientation(frame)
            return frame_to_rgb(frame, frame.width, frame.height, orientation, name=name)
    except UnreadableVideoError as error:
        raise UnreadableVideoError(f"{name}: not a picture that can be read; give a PNG or JPEG file") from error


def _starts(video: VideoScan, first: int) -> Iterator[int]:
    """Where to seek to, one after the other: the first frame, places further ahead, the file's start."""
    if video.seekable:
        yield from (first - back for back in _SEEKS_BACK if first - back > 0)
    yield 0


def _collect(
    video: VideoScan, frames: Iterator[tuple[int, VideoFrame]], wanted: np.ndarray, convert: Convert | None,
    accept_damage: bool, *, last_try: bool,
) -> dict[int, np.ndarray]:  # fmt: skip
    """Wanted frames by number; fewer than wanted where a seek did not lead to them."""
    found: dict[int, np.ndarray] = {}
    missing = {int(i) for i in wanted}
    for index, frame in frames:
        if index not in missing:
            if index > wanted[-1]:
                break
            continue
        if frame.is_corrupt and not accept_damage:
            if not last_try:
                return found
            raise CorruptVideoError(f"{video.name}: frame {index} of {video.decoded} is flagged corrupt")
        pixels = video.to_rgb(frame)
        found[index] = pixels if convert is None else convert(pixels)
        missing.discard(index)
        if not missing:
            break
    return found


def _numbered(
    video: VideoScan, threads: int, start: int, first: int, accept_damage: bool
) -> Iterator[tuple[int, VideoFrame]]:
    """(number, frame) from `first` on: counted from the file's start, or told by stamp and sum after a seek to `start`.

    Ends where a frame is not the one that the scan has seen.
    """
    with open_video(video.path, threads=threads) as (container, stream):
        if not start:
            for index, frame in _from_number(enumerate(decode_packets(container, stream)), first):
                # Damage may be concealed by whatever lies in memory: what is tolerated need not be the same twice.
                if not accept_damage and not video.saw(index, frame):
                    return
                yield index, frame
            return
        try:
            container.seek(int(video.pts[start]), stream=stream, backward=True)
        except import_av().error.FFmpegError:
            return
        for frame in decode_packets(container, stream):
            if frame.pts is None:
                return
            index = int(np.searchsorted(video.pts, frame.pts))
            if index >= video.decoded or video.pts[index] != frame.pts:
                return
            if index >= first:
                if not video.saw(index, frame):
                    return
                yield index, frame


def _from_number(frames: Iterator[tuple[int, VideoFrame]], first: int) -> Iterator[tuple[int, VideoFrame]]:
    return ((index, frame) for index, frame in frames if index >= first)


def decode(
    path: str | os.PathLike[str] | VideoScan, *, fps: float | None = None, convert: Convert | None = None,
    layout: Literal["THWC", "CTHW"] = "THWC", tolerance: Tolerance = DEFAULT_TOLERANCE, threads: int = 0,
    deinterlace: bool = False,
) -> DecodedVideo:  # fmt: skip
    """A whole video file as uint8 frames, at its own rate or resampled to `fps` by its time stamps.

    Shapes: `(T, H, W, C)`, or `(C, T, H, W)` as a view of the same memory. C is 3 (RGB) unless `convert` changes it.
    `deinterlace` makes whole pictures of frames that are marked as interlaced.

    Errors: `UnreadableVideoError`, `EmptyVideoError`, `TruncatedVideoError`, `CorruptVideoError` beyond `tolerance`.
    """
    if layout not in ("THWC", "CTHW"):
        raise ValueError(f"layout must be 'THWC' or 'CTHW', got {layout!r}")
    video = path if isinstance(path, VideoScan) else scan(path, threads=threads)
    problem = video.problem(tolerance)
    if problem is not None:
        raise problem
    order = video.grid(fps)
    stored = read_frames(video, order, convert=convert, threads=threads, tolerance=tolerance, deinterlace=deinterlace)
    frames = torch.from_numpy(stored)
    rate = video.fps if fps is None else fps
    times = np.arange(len(order)) / rate if fps is not None or video.variable else video.times
    return DecodedVideo(frames if layout == "THWC" else frames.permute(3, 0, 1, 2), times, rate, video)
