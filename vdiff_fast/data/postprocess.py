"""From what a sampler returns to what a person looks at. Videos are (C, T, H, W) or (B, C, T, H, W), C = 1 or 3."""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F

from vdiff_fast.data.errors import VideoWriteError

Range = Literal["clamp", "dynamic"]


def to_uint8(video: torch.Tensor, *, range: Range = "clamp", percentile: float = 0.5) -> torch.Tensor:
    """Float video in [-1, 1] -> uint8: round(127.5 (x + 1)), on the CPU. uint8 is returned as it is.

    "clamp" cuts off what lies outside. "dynamic" stretches each clip so that its `percentile` and 100 - `percentile`
    become black and white (one mapping for all frames and channels: no flicker, no change of hue).

    Errors: `VideoWriteError` for NaN or Inf, which would be written as black.
    """
    video = video.detach().cpu()
    if video.dtype == torch.uint8:
        return video
    if not video.is_floating_point():
        raise VideoWriteError(f"frames must be uint8 in [0, 255] or floating point in [-1, 1], got {video.dtype}")
    video = video.float()
    bad = int(torch.count_nonzero(~torch.isfinite(video)))
    if bad:
        raise VideoWriteError(f"{bad} of {video.numel()} values are NaN or Inf; sample in float32 or bfloat16")
    if range == "dynamic":
        if not 0.0 <= percentile < 50.0:
            raise ValueError(f"percentile must be in [0, 50), got {percentile}")
        clips = video if video.dim() == 5 else video.unsqueeze(0)
        video = torch.stack([_stretch(clip, percentile / 100.0) for clip in clips]).view_as(video)
    elif range != "clamp":
        raise ValueError(f"range must be 'clamp' or 'dynamic', got {range!r}")
    return (video.clamp(-1.0, 1.0) + 1.0).mul_(127.5).round_().to(torch.uint8)


def _stretch(clip: torch.Tensor, share: float) -> torch.Tensor:
    """Map the two quantiles to -1 and 1. By sorting, because torch.quantile takes no more than 2^24 values."""
    ordered = clip.flatten().sort().values
    last = len(ordered) - 1
    low, high = ordered[round(share * last)], ordered[round((1.0 - share) * last)]
    return (clip - low) / (high - low).clamp_min(1e-6) * 2.0 - 1.0


def upscale(
    video: torch.Tensor, to: int | tuple[int, int], *, mode: Literal["nearest", "bicubic"] = "bicubic"
) -> torch.Tensor:
    """Enlarge by a whole factor, or resize to (height, width); the dtype stays and bicubic overshoot is cut off."""
    if mode not in ("nearest", "bicubic"):
        raise ValueError(f"mode must be 'nearest' or 'bicubic', got {mode!r}")
    height, width = video.shape[-2:]
    size = (height * to, width * to) if isinstance(to, int) else tuple(to)
    if min(size) < 1:
        raise ValueError(f"cannot resize {height}x{width} to {size[0]}x{size[1]}; factor and size must be positive")
    if size == (height, width):
        return video
    # Every frame of every channel is an image of its own: (planes, 1, H, W).
    planes = video.reshape(-1, 1, height, width).float()
    if mode == "nearest":
        scaled = F.interpolate(planes, size, mode="nearest-exact")
    else:
        scaled = F.interpolate(planes, size, mode="bicubic", antialias=True, align_corners=False)
    bounds = (0.0, 255.0) if video.dtype == torch.uint8 else (-1.0, 1.0)
    scaled = scaled.clamp(*bounds)
    scaled = scaled.round() if video.dtype == torch.uint8 else scaled
    return scaled.to(video.dtype).reshape(*video.shape[:-2], *size)


def smooth_temporal(video: torch.Tensor, sigma: float) -> torch.Tensor:
    """Gaussian over frames: y_t = sum_k w_k x_{t+k}, w_k ~ exp(-k^2 / (2 sigma^2)), ends repeated; 0 is off."""
    if sigma < 0:
        raise ValueError(f"sigma must be 0 (off) or positive, got {sigma}")
    if sigma == 0:
        return video
    radius = max(1, math.ceil(3.0 * sigma))
    offsets = torch.arange(-radius, radius + 1, device="cpu")
    weights = torch.exp(-(offsets.float() ** 2) / (2.0 * sigma**2))
    weights = (weights / weights.sum()).to(video.device)
    frames = video.shape[-3]
    positions = torch.arange(frames, device="cpu")
    smoothed = torch.zeros_like(video, dtype=torch.float32)
    for offset, weight in zip(offsets, weights):
        source = (positions + offset).clamp(0, frames - 1).to(video.device)
        smoothed += weight * video.index_select(-3, source).float()
    return smoothed.round().to(torch.uint8) if video.dtype == torch.uint8 else smoothed.to(video.dtype)


def postprocess(
    video: torch.Tensor, *, range: Range = "clamp", percentile: float = 0.5,
    scale: int | tuple[int, int] = 1, mode: Literal["nearest", "bicubic"] = "bicubic", smoothing: float = 0.0,
) -> torch.Tensor:  # fmt: skip
    """Temporal smoothing (off by default), dynamic range or clamp to uint8, then upscaling, in this order."""
    return upscale(to_uint8(smooth_temporal(video, smoothing), range=range, percentile=percentile), scale, mode=mode)


def grid(videos: torch.Tensor, *, columns: int | None = None, padding: int = 2, background: int = 255) -> torch.Tensor:
    """Several samples side by side: uint8 (B, C, T, H, W) -> (C, T, rows * (H + p) + p, columns * (W + p) + p).

    `columns` defaults to a nearly square arrangement; the last row is filled up with `background`.
    """
    if videos.dim() != 5 or videos.dtype != torch.uint8:
        raise VideoWriteError(f"grid takes uint8 (B, C, T, H, W), got {videos.dtype} {tuple(videos.shape)}")
    batch, channels, frames, height, width = videos.shape
    columns = math.ceil(math.sqrt(batch)) if columns is None else columns
    if columns < 1 or batch < 1:
        raise VideoWriteError(f"a grid needs samples and columns, got {batch} samples in {columns} columns")
    columns = min(columns, batch)
    rows = math.ceil(batch / columns)
    shape = (channels, frames, rows * (height + padding) + padding, columns * (width + padding) + padding)
    sheet = torch.full(shape, background, dtype=torch.uint8, device="cpu")
    for i, video in enumerate(videos):
        top = padding + (i // columns) * (height + padding)
        left = padding + (i % columns) * (width + padding)
        sheet[..., top : top + height, left : left + width] = video
    return sheet
