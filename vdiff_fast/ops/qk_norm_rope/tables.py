"""Tables of the rotary embedding: constants, float32, built in float64."""

from __future__ import annotations

import torch
from torch import Tensor

from vdiff_fast.ops._common.tokens import Tables


def rope_tables(
    positions: int | Tensor, d: int, *, base: float = 10000.0, device: torch.device | str | None = None
) -> Tables:
    """cos, sin of p * base^(-2i/d), i = 0..d/2-1, as float32 tables (positions, d/2).

    Args:
        positions: how many, counted from 0, or the positions themselves (fractions interpolate).
        d: dimension that is rotated, even.
        base: wavelengths run from 2 pi to 2 pi base.

    Returns:
        cos and sin, (positions, d/2) each.

    Raises:
        ValueError: d is odd.

    Source: Su et al. 2021, "RoFormer", eq. 15.
    """
    if d % 2:
        raise ValueError(f"rope_tables: d must be even, got {d}")
    if not isinstance(positions, Tensor):
        positions = torch.arange(positions, device=device)
    exponent = torch.arange(0, d, 2, device=positions.device, dtype=torch.float64) / d
    angle = positions.to(torch.float64)[:, None] * torch.pow(base, -exponent)
    return angle.cos().float(), angle.sin().float()


def axis_pairs(d: int, axes: int) -> list[int]:
    """How many of the d/2 rotated pairs each axis gets: equal shares, the rest to the first."""
    share = d // 2 // axes
    return [d // 2 - share * (axes - 1)] + [share] * (axes - 1)


def grid_tables(axes: list[Tables], sizes: tuple[int, ...]) -> Tables:
    """Tables (prod(sizes), d/2) of a row-major grid out of one table per axis, each at least as long as its size."""

    def combine(which: int) -> Tensor:
        parts = []
        for i, size in enumerate(sizes):
            table = axes[i][which][:size]
            shape = [1] * len(sizes) + [table.shape[1]]
            shape[i] = size
            parts.append(table.reshape(shape).expand(*sizes, -1))
        return torch.cat(parts, dim=-1).flatten(0, -2)

    return combine(0), combine(1)
