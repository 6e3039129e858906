"""Typed errors of ops on videos (B, ...)."""

from __future__ import annotations

import torch
from torch import Tensor

from vdiff_fast._derivatives import values_readable


def check_video(op: str, name: str, x: Tensor) -> None:
    """A floating tensor with a batch axis."""
    if not x.is_floating_point():
        raise TypeError(f"{op}: {name} must be floating point, got {x.dtype}")
    if x.dim() == 0:
        raise ValueError(f"{op}: {name} must have a batch axis, (B, ...), got a scalar")


def check_values(op: str, name: str, x: Tensor) -> None:
    """Names the first sample with a NaN or Inf; reads values, so eager CPU tensors only."""
    if not values_readable(x) or bool(torch.isfinite(x).all()):
        return
    sample = int((~torch.isfinite(x.flatten(1) if x.dim() > 1 else x[:, None])).any(1).nonzero()[0])
    raise ValueError(f"{op}: {name} holds NaN or Inf, first in sample {sample}; check the decoded frames or latents")
