"""Launch parameters of the Triton kernels."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class TileConfig:
    block: int
    num_warps: int


def tile_config(width: int) -> TileConfig:
    """A tile of one row: 8 bf16 elements a thread fill 16-byte loads. Not measured on a GPU yet."""
    return TileConfig(block=1024, num_warps=4) if width > 512 else TileConfig(block=256, num_warps=1)
