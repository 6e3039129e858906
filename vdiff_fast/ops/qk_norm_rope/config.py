"""Launch parameters of the Triton kernels."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class TileConfig:
    """A tile is `rows` heads of one frame, each `width` wide: the head dim rounded up to a power of two."""

    rows: int
    width: int
    num_warps: int


# 16 elements a thread: what ptxas holds for sm_80, sm_90 and sm_100 without a spill. Not measured on a GPU yet.
FORWARD_ELEMENTS, FORWARD_WARPS = 2048, 4
BACKWARD_ELEMENTS, BACKWARD_WARPS = 4096, 8
# Programs of a backward for each of q and k: more of them mean more partial sums of the weights to write.
MAX_PROGRAMS = 2048


def tile_config(head_dim: int, *, backward: bool) -> TileConfig:
    width = 1 << (head_dim - 1).bit_length()
    if backward:
        return TileConfig(BACKWARD_ELEMENTS // width, width, BACKWARD_WARPS)
    return TileConfig(FORWARD_ELEMENTS // width, width, FORWARD_WARPS)
