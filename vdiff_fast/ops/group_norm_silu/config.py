"""The shape of a call as the kernels see it, and the launch parameters of the Triton kernels.

Kernels work on tiles [channels, positions]. A *segment* is the longest run of positions of one sample in which
statistics, scale and shift are constant: the clip, or one frame. A *unit* is what shares statistics: one or more
segments.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Geometry:
    """Sizes of one call, in elements.

    Attributes:
        samples: B.
        channels, channels2: of x and of x2 (0 without it).
        positions: T*H*W, of one sample.
        segments_per_sample: 1, or T where statistics or modulation are per frame.
        segments_per_unit: 1, or T where statistics span the clip while modulation is per frame.
        segments_per_scale, segments_per_shift: segments that share one row of it.
    """

    samples: int
    channels: int
    channels2: int
    positions: int
    num_groups: int
    segments_per_sample: int
    segments_per_unit: int
    segments_per_scale: int
    segments_per_shift: int
    channels_last: bool

    @property
    def all_channels(self) -> int:
        return self.channels + self.channels2

    @property
    def group_channels(self) -> int:
        return self.all_channels // self.num_groups

    @property
    def segments(self) -> int:
        return self.samples * self.segments_per_sample

    @property
    def units(self) -> int:
        return self.segments // self.segments_per_unit

    @property
    def length(self) -> int:
        """Positions of one segment."""
        return self.positions // self.segments_per_sample


def geometry(
    shape: Sequence[int],
    channels2: int,
    num_groups: int,
    scale_frames: int,
    shift_frames: int,
    per_frame: bool,
    channels_last: bool,
) -> Geometry:
    """Geometry of x of this shape; scale and shift (B, F, C) have 1 or T frames, 1 where they are absent."""
    samples, channels, *space = shape
    segments = space[0] if len(space) == 3 and (per_frame or max(scale_frames, shift_frames) > 1) else 1
    return Geometry(
        samples=samples,
        channels=channels,
        channels2=channels2,
        positions=math.prod(space),
        num_groups=num_groups,
        segments_per_sample=segments,
        segments_per_unit=1 if per_frame else segments,
        segments_per_scale=segments // scale_frames,
        segments_per_shift=segments // shift_frames,
        channels_last=channels_last,
    )


@dataclass(frozen=True)
class Tile:
    """A tile [block_c channels, block_r positions] in the registers of num_warps warps."""

    block_c: int
    block_r: int
    num_warps: int

    @property
    def area(self) -> int:
        return self.block_c * self.block_r


@dataclass(frozen=True)
class Resident:
    """One read: a program keeps `groups` whole groups of one unit in registers."""

    tile: Tile
    groups: int

    @property
    def block_k(self) -> int:
        """Rows of the table that sums channels by group."""
        return next(rows for rows in GROUP_ROWS if rows >= self.groups)

    def programs(self, shape: Geometry) -> int:
        return shape.units * -(-shape.num_groups // self.groups)


@dataclass(frozen=True)
class Split:
    """Partial statistics, then the apply pass; a program walks over `tiles` tiles of one slab of channels."""

    tile: Tile
    tiles: int

    @property
    def chunk(self) -> int:
        """Positions of one program."""
        return self.tile.block_r * self.tiles

    def chunks(self, shape: Geometry) -> int:
        return -(-shape.length // self.chunk)

    def programs(self, shape: Geometry) -> int:
        return shape.segments * self.chunks(shape) * -(-shape.all_channels // self.tile.block_c)


# Few tiles, so that few variants are compiled. 16,384 elements in 16 warps hold without spills where loads are wide
# (ptxas, sm_80/90/100), 32,768 do not; backward keeps x and dy. Not measured on a GPU yet.
_CONTIGUOUS = ((16, 256), (32, 128))
_CONTIGUOUS_WIDE = ((4, 4096), (16, 1024), (64, 256))
_CHANNELS_LAST = ((32, 128), (128, 32))
_CHANNELS_LAST_WIDE = ((32, 512), (128, 128))
_SPLIT_CONTIGUOUS = ((1, 2048), (16, 128))
_SPLIT_CHANNELS_LAST = ((64, 16), (16, 64))
# Channels of a channels-last row read together: 32 fill a 64-byte sector pair in bf16.
_ROW_CHANNELS = 32
# Programs of a split pass: one wave of the 132 SMs of an H200, eight programs each, since what a program does before
# its loop costs as much as six of its tiles. Not measured on a GPU yet.
_SPLIT_PROGRAMS = 1056
_MOST_TILES = 256
_INT32 = 2**31 - 1
# Groups of one slab, padded to one of these.
GROUP_ROWS = (1, 16)
# Tiles of the kernels that combine partial results: one group of one unit a program.
COMBINE_ENTRIES = 1024
COMBINE_CHUNKS = 32
COMBINE_CHANNELS = 32


def resident_tiles(channels_last: bool, backward: bool, wide: bool) -> tuple[Tile, ...]:
    """Every tile that the one-read kernels are compiled for; the `wide` ones take only what `_is_wide` allows."""
    small, large = (_CHANNELS_LAST, _CHANNELS_LAST_WIDE) if channels_last else (_CONTIGUOUS, _CONTIGUOUS_WIDE)
    if not backward:
        return tuple(Tile(c, r, 16 if wide else 8) for c, r in (large if wide else small))
    # Backward holds two tiles; where a thread's elements are of many channels, their coefficients too.
    if channels_last:
        return () if wide else tuple(Tile(c, r, 16) for c, r in small)
    return tuple(Tile(c, r // 2, 16 if wide else 8) for c, r in (large if wide else small))


def split_tiles(channels_last: bool) -> tuple[Tile, ...]:
    """Every tile that the split kernels are compiled for."""
    if channels_last:
        return tuple(Tile(c, r, 4) for c, r in _SPLIT_CHANNELS_LAST)
    return tuple(Tile(c, r, 8) for c, r in _SPLIT_CONTIGUOUS)


def _is_wide(shape: Geometry, groups: int) -> bool:
    """Loads of 16 bytes: one source, and every row of a tile starts at a multiple of 16 elements."""
    if shape.channels2:
        return False
    if shape.channels_last:
        return shape.channels % 16 == 0 and groups * shape.group_channels % 16 == 0
    return shape.positions % 16 == 0 and shape.length % 16 == 0


def _groups_in(block_c: int, shape: Geometry) -> int:
    """Groups of one slab: one in contiguous memory, else as many as fit, preferably a multiple of 16 channels."""
    if not shape.channels_last:
        return 1
    fit = min(block_c // shape.group_channels, shape.num_groups, GROUP_ROWS[-1])
    for groups in range(fit, fit // 2, -1):
        if groups * shape.group_channels % 16 == 0:
            return groups
    return fit


def resident(shape: Geometry, backward: bool) -> Resident | None:
    """The tile that wastes the fewest lanes, or None where no tile holds a group of one unit."""
    if shape.segments_per_unit > 1:
        return None  # coefficients change within the unit
    best: tuple[int, int, Resident] | None = None
    for wide in (False, True):
        for tile in resident_tiles(shape.channels_last, backward, wide):
            if tile.block_c < shape.group_channels or tile.block_r < shape.length:
                continue
            groups = _groups_in(tile.block_c, shape)
            if wide and not _is_wide(shape, groups):
                continue
            if _farthest(tile, shape, tile.block_r) > _INT32:
                continue
            narrow = shape.channels_last and groups * shape.group_channels < min(_ROW_CHANNELS, shape.all_channels)
            cost = -(-shape.num_groups // groups) * tile.area * (2 if narrow else 1)
            if best is None or (cost, tile.area) < best[:2]:
                best = (cost, tile.area, Resident(tile, groups))
    return best[2] if best else None


def _farthest(tile: Tile, shape: Geometry, chunk: int) -> int:
    """Bound of a tile's offsets from its origin."""
    if shape.channels_last:
        return chunk * shape.all_channels
    return tile.block_c * shape.positions


def split(shape: Geometry) -> Split:
    """The tile that wastes the fewest lanes, and as many tiles a program as leave the chip full."""

    def lanes(tile: Tile) -> int:
        slabs = -(-shape.all_channels // tile.block_c)
        return slabs * tile.block_c * -(-shape.length // tile.block_r) * tile.block_r

    tiles = split_tiles(shape.channels_last)
    allowed = [tile for tile in tiles if _farthest(tile, shape, tile.block_r) <= _INT32] or tiles[:1]
    tile = min(allowed, key=lanes)
    total = shape.segments * lanes(tile) // tile.area
    reach = _INT32 // (tile.block_r * shape.all_channels) if shape.channels_last else _MOST_TILES
    return Split(tile, max(1, min(_MOST_TILES, reach, total // _SPLIT_PROGRAMS, -(-shape.length // tile.block_r))))


def choose(shape: Geometry, backward: bool) -> Resident | Split:
    """One read where registers hold the groups, else split."""
    return resident(shape, backward) or split(shape)
