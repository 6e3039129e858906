"""Launch parameters of the reductions before a step; the step itself is tiled like every op that draws noise."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class SpreadConfig:
    block: int
    parts: int
    num_warps: int


# Parts of 4096 elements are held in registers for both passes; `parts` of them are merged at a time. Not measured on
# a GPU yet.
SPREAD = SpreadConfig(block=4096, parts=256, num_warps=8)
