"""Times (B,) as the sinusoidal embedding takes them."""

from __future__ import annotations

import torch
from torch import Tensor


def kernel_times(t: Tensor) -> Tensor:
    """t as kernels read it: contiguous float32, float64 or int64."""
    if t.dtype not in (torch.float32, torch.float64, torch.int64):
        t = t.to(torch.float32 if t.is_floating_point() else torch.int64)
    return (t.detach() if t.requires_grad else t).contiguous()


def check_times(op: str, t: Tensor, dim: int, max_period: float, shift: float) -> None:
    """Typed errors of the embedding's arguments, the same for the embedding alone and with its MLP."""
    if not isinstance(t, Tensor) or t.is_complex() or t.dtype == torch.bool:
        found = t.dtype if isinstance(t, Tensor) else type(t).__name__
        raise TypeError(f"{op}: t must be a tensor of integers or floats, got {found}")
    if t.dim() != 1:
        raise ValueError(f"{op}: t must be (B,), got shape {tuple(t.shape)}; use t.reshape(-1) or t.expand(B)")
    if dim < 2 or dim // 2 <= shift:
        raise ValueError(f"{op}: dim {dim} must be at least 2 with dim // 2 > shift ({shift})")
    if max_period <= 0:
        raise ValueError(f"{op}: max_period {max_period} must be > 0")
