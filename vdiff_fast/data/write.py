"""Write videos that play anywhere: H.264 MP4, GIF, and PNG contact sheets."""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from vdiff_fast._files import whole_file
from vdiff_fast.data.container import import_av
from vdiff_fast.data.errors import VideoWriteError
from vdiff_fast.data.pixels import SWS_ACCURATE_RND, SWS_BICUBIC
from vdiff_fast.data.postprocess import grid, to_uint8

if TYPE_CHECKING:
    from av.video.frame import VideoFrame

# The H.264 encoders of FFmpeg builds, best first; PyAV's own wheels have the first.
_H264_ENCODERS = ("libx264", "libopenh264", "h264_videotoolbox", "h264_mf")
_H264_SUFFIXES = {".mp4": "mp4", ".m4v": "mp4", ".mov": "mov", ".mkv": "matroska"}
# ITU-T H.273 code points: BT.709 for primaries, transfer and matrix; limited ("tv") range.
_BT709, _LIMITED_RANGE = 1, 1
# Browsers show GIF frames shorter than 2/100 s at a tenth of a second.
_GIF_MAX_FPS = 50


class VideoPaddedWarning(UserWarning):
    """An odd size was padded by one pixel, because 4:2:0 video needs even sizes."""


@dataclass(frozen=True)
class WrittenVideo:
    """What was written; `note` says what was changed on the way, else it is empty."""

    path: Path
    frames: int
    width: int
    height: int
    fps: float
    note: str = ""


def write_video(
    video: torch.Tensor, path: str | os.PathLike[str], *, fps: float = 8.0, quality: int = 18, loop: int = 0,
    comment: str | None = None,
) -> WrittenVideo:  # fmt: skip
    """Write (C, T, H, W), or (B, C, T, H, W) side by side, as the file's suffix says: .mp4 .m4v .mov .mkv or .gif.

    uint8 is taken as it is, floating point as [-1, 1] and clamped (see `postprocess`); C = 1 is written as grey.
    H.264: yuv420p, BT.709 tagged, moov before mdat, constant quality (`quality` is x264's CRF: 18 looks lossless, less
    is better). Odd sizes are padded by repeating the last row or column: `VideoPaddedWarning` and `note` say so. GIF:
    one palette for the whole clip, dithered; `loop` 0 repeats for ever, else it plays that many times. `comment` goes
    into the container's metadata, which GIF has none of. The file appears when it is complete.

    Errors: `VideoWriteError` for shapes, NaN, suffixes and rates that cannot be written.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    frames = as_frames(video)
    if not (fps > 0 and np.isfinite(fps)):
        raise VideoWriteError(f"fps must be positive, got {fps}")
    if suffix != ".gif" and suffix not in _H264_SUFFIXES:
        known = " ".join([*_H264_SUFFIXES, ".gif"])
        raise VideoWriteError(f"{path.name}: cannot write {suffix or 'a file without a suffix'}; choose one of {known}")
    note = ""
    with whole_file(path) as temporary:
        if suffix == ".gif":
            if fps > _GIF_MAX_FPS:
                raise VideoWriteError(
                    f"{path.name}: GIF viewers play at most {_GIF_MAX_FPS} fps, got {fps:g}; use .mp4"
                )
            _write_gif(frames, temporary, Fraction(fps).limit_denominator(1000), loop)
        else:
            padded = _pad_to_even(frames)
            if padded.shape != frames.shape:
                note = (
                    f"{path.name}: {frames.shape[2]}x{frames.shape[1]} padded to "
                    f"{padded.shape[2]}x{padded.shape[1]}; H.264 in yuv420p needs even sizes"
                )
                warnings.warn(note, VideoPaddedWarning, stacklevel=2)
            frames = padded
            rate = Fraction(fps).limit_denominator(1001)
            _write_h264(frames, temporary, rate, _H264_SUFFIXES[suffix], quality, comment)
    return WrittenVideo(path, len(frames), frames.shape[2], frames.shape[1], fps, note)


def contact_sheet(
    videos: torch.Tensor, path: str | os.PathLike[str], *, columns: int = 8, padding: int = 2, background: int = 255
) -> Path:
    """A PNG with a row per sample and `columns` frames of each, evenly spread from the first to the last.

    `videos`: (B, C, T, H, W) or (C, T, H, W), uint8 or floating point in [-1, 1].
    """
    batch = to_uint8(videos if videos.dim() == 5 else videos.unsqueeze(0))
    if columns < 1:
        raise VideoWriteError(f"a contact sheet needs at least one column, got {columns}")
    as_frames(batch[0])
    count = min(columns, batch.shape[2])
    chosen = batch[:, :, torch.linspace(0, batch.shape[2] - 1, count, device="cpu").round().long()]
    # (B, C, n, H, W) -> B * n pictures of one frame each, in rows of n.
    pictures = chosen.transpose(1, 2).reshape(-1, chosen.shape[1], 1, *chosen.shape[3:])
    sheet = grid(pictures, columns=count, padding=padding, background=background)
    write_png(sheet[:, 0], path)
    return Path(path)


def write_png(picture: torch.Tensor, path: str | os.PathLike[str]) -> None:
    """Write one uint8 picture (C, H, W)."""
    try:
        from PIL import Image
    except ImportError as error:
        raise ImportError("writing PNG needs Pillow: pip install 'vdiff-fast[video]'") from error
    pixels = as_frames(picture.unsqueeze(1))[0]
    with whole_file(path) as temporary:
        Image.fromarray(pixels).save(temporary, format="PNG")


def as_frames(video: torch.Tensor) -> np.ndarray:
    """(C, T, H, W), or a batch laid side by side, as RGB uint8 (T, H, W, 3)."""
    if video.dim() == 5:
        video = grid(to_uint8(video), padding=0 if len(video) == 1 else 2)
    if video.dim() != 4 or video.shape[0] not in (1, 3):
        raise VideoWriteError(f"a video is (C, T, H, W) with 1 or 3 channels, got {tuple(video.shape)}")
    if not video.numel():
        raise VideoWriteError(f"a video of shape {tuple(video.shape)} has nothing to write")
    return np.ascontiguousarray(to_uint8(video).expand(3, -1, -1, -1).permute(1, 2, 3, 0).numpy())


def _pad_to_even(frames: np.ndarray) -> np.ndarray:
    _, height, width, _ = frames.shape
    return np.pad(frames, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)), mode="edge")


def _write_h264(
    frames: np.ndarray, path: Path, rate: Fraction, container_format: str, quality: int, comment: str | None
) -> None:  # fmt: skip
    av = import_av()
    movflags = {"movflags": "+faststart"} if container_format in ("mp4", "mov") else {}
    with av.open(f"file:{path}", "w", format=container_format, options=movflags) as container:
        if comment is not None:
            container.metadata["comment"] = comment
        stream = container.add_stream(_h264_encoder(av), rate=rate)
        stream.width, stream.height, stream.pix_fmt = frames.shape[2], frames.shape[1], "yuv420p"
        stream.options = {"crf": str(quality), "preset": "medium"}
        context = stream.codec_context
        context.colorspace = context.color_primaries = context.color_trc = _BT709
        context.color_range = _LIMITED_RANGE
        for i, pixels in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24").reformat(
                format="yuv420p", dst_colorspace="ITU709", dst_color_range="MPEG",
                interpolation=SWS_BICUBIC | SWS_ACCURATE_RND, threads=1,
            )  # fmt: skip
            frame.pts, frame.time_base = i, 1 / rate
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def _h264_encoder(av: Any) -> str:
    for name in _H264_ENCODERS:
        with contextlib.suppress(av.error.FFmpegError, ValueError):
            av.Codec(name, "w")
            return name
    raise VideoWriteError(f"this FFmpeg has no H.264 encoder ({', '.join(_H264_ENCODERS)}); write a .gif instead")


def _write_gif(frames: np.ndarray, path: Path, rate: Fraction, loop: int) -> None:
    """GIF with FFmpeg's palettegen and paletteuse: 256 colours chosen over all frames, error-diffusion dither."""
    av = import_av()
    # GIF counts in 1/100 s: stamps are rounded, so 30 fps plays as 3, 3, 4 hundredths.
    options = {"loop": str(loop - 1 if loop > 0 else 0)} if loop != 1 else {"loop": "-1"}
    with av.open(f"file:{path}", "w", format="gif", options=options) as container:
        stream = container.add_stream("gif", rate=rate)
        stream.width, stream.height, stream.pix_fmt = frames.shape[2], frames.shape[1], "pal8"
        for frame in _paletted(av, frames, rate):
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def _paletted(av: Any, frames: np.ndarray, rate: Fraction) -> Iterator[VideoFrame]:
    graph = av.filter.Graph()
    source = graph.add_buffer(
        width=frames.shape[2], height=frames.shape[1], format=av.VideoFormat("rgb24"), time_base=1 / rate
    )
    split = graph.add("split")
    palette = graph.add("palettegen", "stats_mode=full:reserve_transparent=0")
    use = graph.add("paletteuse", "dither=sierra2_4a:diff_mode=rectangle")
    sink = graph.add("buffersink")
    source.link_to(split)
    split.link_to(use, 0, 0)
    split.link_to(palette, 1, 0)
    palette.link_to(use, 0, 1)
    use.link_to(sink)
    graph.configure()
    for i, pixels in enumerate(frames):
        frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
        frame.pts, frame.time_base = i, 1 / rate
        graph.vpush(frame)
    graph.vpush(None)
    while True:
        try:
            yield graph.vpull()
        except (av.error.EOFError, av.error.BlockingIOError):
            return
