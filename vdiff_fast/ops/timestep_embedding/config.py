"""Launch parameters of the Triton kernel."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class TileConfig:
    block: int
    num_warps: int


# One program holds up to 256 frequencies of one time: the kernel is a launch, nothing more. Not measured on a GPU yet.
TILE = TileConfig(block=256, num_warps=4)
