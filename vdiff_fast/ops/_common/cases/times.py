"""Times and conventions that the specs of the time embedding and its MLP have in common."""

from __future__ import annotations

import torch

ADM = {"shift": 0.0, "flip_sin_to_cos": True}


def steps(batch: int, device: torch.device, dtype: torch.dtype, high: float = 1000.0) -> torch.Tensor:
    """Seeded times in [0, high), rounded to dtype."""
    generator = torch.Generator().manual_seed(batch)
    return (torch.rand(batch, generator=generator, dtype=torch.float64) * high).to(device, dtype)
