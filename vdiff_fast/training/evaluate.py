"""How near samples are to the training windows, and whether they move."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


def psnr(a: Tensor, b: Tensor) -> Tensor:
    """10 log10(4 / mean (a - b)^2) in dB, for values in [-1, 1]: (N, ...) and (N, ...) -> (N,)."""
    error = (a.double() - b.double()).square().flatten(1).mean(1)
    return 10.0 * torch.log10(4.0 / error)


@dataclass(frozen=True)
class Nearest:
    """For each sample: the PSNR to its nearest window, and which that is."""

    psnr: list[float]
    window: list[int]


def nearest_windows(samples: Tensor, windows: Sequence[Tensor] | Tensor) -> Nearest:
    """PSNR of each sample (B, C, T, H, W), clamped to [-1, 1], to the window (C, T, H, W) it is nearest to."""
    samples = samples.detach().cpu().float().clamp(-1.0, 1.0)
    table = torch.stack([psnr(samples, window.unsqueeze(0).expand_as(samples)) for window in windows], dim=1)
    best = table.max(dim=1)
    return Nearest([round(float(v), 2) for v in best.values], best.indices.tolist())


def motion(videos: Tensor) -> float:
    """mean |x_{t+1} - x_t| over (B, C, T, H, W) in [-1, 1]: 0 for a still picture."""
    videos = videos.detach().cpu().float().clamp(-1.0, 1.0)
    return float((videos[:, :, 1:] - videos[:, :, :-1]).abs().mean())
