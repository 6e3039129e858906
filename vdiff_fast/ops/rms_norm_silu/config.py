"""Launch parameters of the Triton kernels: tiles [channels, positions] of one segment, a run of equal modulation."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class TileConfig:
    """A tile of block_c channels and block_r positions; a program walks over `tiles` of them in the backward."""

    block_c: int
    block_r: int
    num_warps: int
    tiles: int = 1

    def chunks(self, length: int) -> int:
        return -(-length // (self.block_r * self.tiles))


# Channels-last rows are contiguous in the channels, so wide tiles of few positions are read whole.
# Not measured on a GPU yet.
_CONTIGUOUS = ((16, 256), (64, 64))
_CHANNELS_LAST = ((16, 256), (128, 32), (512, 8), (2048, 4))
# Programs of a backward pass: more tiles a program mean fewer partial sums to write. Not measured on a GPU yet.
_PROGRAMS = 2048
_MOST_TILES = 16


def tiles(channels_last: bool, backward: bool) -> tuple[TileConfig, ...]:
    """Every tile that the kernels are compiled for, by rising channels."""
    shapes = _CHANNELS_LAST if channels_last else _CONTIGUOUS
    if not backward:
        return tuple(TileConfig(c, r, 8) for c, r in shapes)
    # x and dy, and sums of both: fewer positions; these do not spill on any supported Triton (ptxas, sm_80/90/100).
    if channels_last:
        return tuple(TileConfig(c, r, warps) for c, r, warps in ((16, 64, 4), (128, 16, 4), (512, 2, 4), (2048, 2, 8)))
    return tuple(TileConfig(c, r // 4, 4) for c, r in shapes)


def tile_config(channels: int, segments: int, length: int, channels_last: bool, backward: bool) -> TileConfig:
    """The smallest tile that holds all channels, read once; else the largest, and x is read twice."""
    known = tiles(channels_last, backward)
    tile = next((t for t in known if t.block_c >= channels), known[-1])
    count = 1
    if backward and tile.block_c >= channels:
        count = max(1, min(_MOST_TILES, segments * -(-length // tile.block_r) // _PROGRAMS))
    return TileConfig(tile.block_c, tile.block_r, tile.num_warps, count)
