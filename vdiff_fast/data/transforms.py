"""Resize, crop, flip and choose a window: one choice for the whole clip, never per frame. Videos are (C, T, H, W)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F

from vdiff_fast.data.draw import Draw
from vdiff_fast.data.errors import ShortVideoError, ValueRangeError

Fit = Literal["cover", "contain", "stretch"]
FITS = ("cover", "contain", "stretch")

# ITU-R BT.601 luma, the grey that RGB video is defined with.
_LUMA = (0.299, 0.587, 0.114)


@dataclass(frozen=True)
class Placement:
    """The one crop and flip of a clip, in pixels of the resized video."""

    top: int
    left: int
    flip: bool


@dataclass(frozen=True)
class ClipSpec:
    """What one training clip looks like and which random choices are made for it.

    `frames` pictures of `size` (height, width) with `channels` 3 (RGB) or 1 (luma), every `stride`-th of a video shown
    at `fps` (None: the video's own rate); with `strides`, the stride of each clip is drawn from these. `fit`: "cover"
    resizes the shorter side to fit and crops, "contain" fits the longer side and pads with black, "stretch" ignores the
    aspect. `flip` is the probability of a horizontal flip. `random_crop` and `random_window` draw a position; without
    them the crop is central and windows lie evenly. `deinterlace` makes whole pictures of interlaced frames.
    """

    frames: int
    size: tuple[int, int]
    stride: int = 1
    fps: float | None = None
    channels: int = 3
    fit: Fit = "cover"
    flip: float = 0.0
    random_crop: bool = False
    random_window: bool = True
    seed: int = 0
    strides: tuple[int, ...] = ()
    deinterlace: bool = False

    def __post_init__(self) -> None:
        smallest = min(self.strides, default=1)
        for name, value in (
            ("frames", self.frames), ("stride", self.stride), ("size", min(self.size)), ("strides", smallest),
        ):  # fmt: skip
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if self.channels not in (1, 3):
            raise ValueError(f"channels must be 3 (RGB) or 1 (luma), got {self.channels}")
        if self.fit not in FITS:
            raise ValueError(f"fit must be one of {', '.join(FITS)}, got {self.fit!r}")
        if not 0.0 <= self.flip <= 1.0:
            raise ValueError(f"flip is a probability in [0, 1], got {self.flip}")
        if self.fps is not None and not self.fps > 0:
            raise ValueError(f"fps must be positive, got {self.fps}")

    @property
    def span(self) -> int:
        """Frames of the video that the longest clip reaches over: (frames - 1) * stride + 1."""
        return (self.frames - 1) * max(self.strides, default=self.stride) + 1

    def draw_stride(self, draw: Draw) -> int:
        """One of `strides`, each entry equally likely; `stride`, and no draw, where there are none."""
        return self.strides[draw.integer(len(self.strides))] if self.strides else self.stride

    def window(self, start: int, stride: int | None = None) -> np.ndarray:
        """Positions of the clip's frames: start, start + stride, ... (int64)."""
        return start + (self.stride if stride is None else stride) * np.arange(self.frames)

    def slack(self, stride: int) -> int:
        """How far the start of a clip of this stride can move within a `span`."""
        return self.span - ((self.frames - 1) * stride + 1)

    def require(self, name: str, available: int) -> None:
        """`ShortVideoError` if a video with this many frames holds no clip."""
        if available < self.span:
            rate = f" at {self.fps:g} fps" if self.fps else ""
            stride = max(self.strides, default=self.stride)
            every = f" (one in {stride} of {self.span})" if stride > 1 else ""
            raise ShortVideoError(
                f"{name}: {available} frames{rate} < {self.frames} needed{every}; "
                "use fewer frames, a smaller stride or a higher fps"
            )


def as_size(size: int | tuple[int, int]) -> tuple[int, int]:
    """(height, width) from one number or two."""
    height, width = (size, size) if isinstance(size, int) else size
    return int(height), int(width)


def resized_size(height: int, width: int, size: tuple[int, int], fit: Fit) -> tuple[int, int]:
    """The size to resize to before crop or padding, aspect kept unless `fit` is "stretch"; rounded to whole pixels."""
    wanted_height, wanted_width = size
    if fit == "stretch":
        return size
    # Compared by cross products: height/wanted_height against width/wanted_width without a rounding error.
    height_is_tighter = height * wanted_width <= width * wanted_height
    if height_is_tighter == (fit == "cover"):
        return wanted_height, max(1, (2 * width * wanted_height + height) // (2 * height))
    return max(1, (2 * height * wanted_width + width) // (2 * width)), wanted_width


def resize(video: torch.Tensor, size: tuple[int, int], *, mode: str = "bicubic") -> torch.Tensor:
    """Antialiased resize of uint8 or float (C, T, H, W) to (C, T, *size), each frame alone; uint8 saturates."""
    if tuple(video.shape[-2:]) == tuple(size):
        return video
    frames = F.interpolate(video.transpose(0, 1), size=tuple(size), mode=mode, antialias=True, align_corners=False)
    return frames.transpose(0, 1)


def resize_frame(frame: np.ndarray, size: tuple[int, int], channels: int = 3) -> np.ndarray:
    """`resize` for one decoded uint8 frame (H, W, 3) -> (h, w, channels): what a decoder applies frame by frame."""
    video = torch.from_numpy(frame).permute(2, 0, 1).unsqueeze(1)
    video = resize(video, size)
    if channels == 1:
        video = to_gray(video)
    return np.ascontiguousarray(video[:, 0].permute(1, 2, 0).numpy())


def to_gray(video: torch.Tensor) -> torch.Tensor:
    """Luma 0.299 R + 0.587 G + 0.114 B of uint8 (3, T, H, W), rounded -> (1, T, H, W)."""
    if video.shape[0] == 1:
        return video
    red, green, blue = (weight * channel.float() for weight, channel in zip(_LUMA, video))
    return (red + green + blue).round().to(torch.uint8).unsqueeze(0)


def choose_placement(draw: Draw, resized: tuple[int, int], spec: ClipSpec) -> Placement:
    """Draw the clip's crop position and flip. A negative offset means padding."""
    slack = [resized[axis] - spec.size[axis] for axis in (0, 1)]
    offsets = [draw.integer(s + 1) if spec.random_crop and s > 0 else s // 2 for s in slack]
    return Placement(offsets[0], offsets[1], draw.chance(spec.flip))


def place(video: torch.Tensor, size: tuple[int, int], placement: Placement) -> torch.Tensor:
    """Crop (or pad with black) every frame of (C, T, H, W) at the same place and flip all or none."""
    top, left = max(0, placement.top), max(0, placement.left)
    video = video[..., top : top + size[0], left : left + size[1]]
    before = (max(0, -placement.left), max(0, -placement.top))
    after = (size[1] - video.shape[-1] - before[0], size[0] - video.shape[-2] - before[1])
    if any(before + after):
        video = F.pad(video, (before[0], after[0], before[1], after[1]))
    return video.flip(-1) if placement.flip else video


def to_unit_range(batch: torch.Tensor, *, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """x / 127.5 - 1: uint8 [0, 255] -> `dtype` [-1, 1], on the batch's device and in its memory layout.

    Errors: `TypeError` for anything but uint8, because a second conversion would silently give black frames.
    """
    if batch.dtype != torch.uint8:
        raise TypeError(f"to_unit_range takes uint8 frames, got {batch.dtype}; this batch was converted before")
    return batch.to(torch.float32).div_(127.5).sub_(1.0).to(dtype)


def check_range(batch: torch.Tensor, *, slack: float = 0.05) -> None:
    """Raise `ValueRangeError` unless the batch is finite and lies in [-1, 1]; call it on the first batch.

    Recognises uint8, [0, 255], [0, 1] and mean/deviation-normalised frames. Reads values, so it waits for the device.
    """
    if batch.dtype == torch.uint8:
        raise ValueRangeError("batch is uint8 in [0, 255]; models expect [-1, 1]: use to_unit_range(batch)")
    if not batch.numel():
        raise ValueRangeError("batch is empty")
    low, high = (float(bound) for bound in torch.aminmax(batch.float()))
    found = f"batch has values in [{low:.4g}, {high:.4g}]"
    if not np.isfinite(low) or not np.isfinite(high):
        raise ValueRangeError(f"{found}; models expect finite values in [-1, 1]: look for NaN or Inf in the data")
    if low >= 0.0 and high > 1.0 + slack:
        raise ValueRangeError(f"{found}, that is [0, 255]; models expect [-1, 1]: divide by 127.5 and subtract 1")
    if low < -1.0 - slack or high > 1.0 + slack:
        raise ValueRangeError(
            f"{found}; models expect [-1, 1]: do not normalise by mean and deviation "
            "(of latents: set data.values to any)"
        )
    if low >= 0.0:
        raise ValueRangeError(f"{found}, that is [0, 1]; models expect [-1, 1]: multiply by 2 and subtract 1")
