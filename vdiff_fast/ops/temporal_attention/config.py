"""Launch parameters of the Triton kernels, and where a context goes."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class TileConfig:
    """A program holds `tiles` tiles of `rows` rows: one position each, or two of 8 frames.

    Attributes:
        rows: rows of a tile, 16 or more: what a tensor core takes.
        frames: rows of one position in a tile; rows / frames positions share a tile.
        tiles: tiles of a program.
        width: head dim rounded up to a power of two.
    """

    rows: int
    frames: int
    tiles: int
    width: int
    num_warps: int

    @property
    def positions(self) -> int:
        """Positions of one program."""
        return self.tiles * (self.rows // self.frames)


def _power_of_two(n: int) -> int:
    return 1 << max(n - 1, 0).bit_length()


# Elements [tiles, rows, width] of one operand that compile without a spill for sm_80, sm_90 and sm_100 in 16 bits; norm
# and rotation keep more alive. What is faster has not been measured on a GPU.
FORWARD_ELEMENTS = 8192
BACKWARD_ELEMENTS = 4096
# The largest position a program holds, by the same measure. Twice as much in fp32 (17 frames of d = 72 fill 32 x 128)
# spills in the backward: 336 to 560 bytes with 8 warps, 840 to 1224 with 16, no less with operands read again.
MAX_ELEMENTS = {2: 4096, 4: 2048}
MAX_FUSED_ELEMENTS = {2: 2048, 4: 1024}
# So narrow a head holds 64 frames in fp32 too: 128 to 150 registers, no spill.
NARROW_WIDTH = 16


# The longest context that modules give to this op and not to SDPA, by type of device. SDPA's time over ours (AVX2, 2
# threads, 8 heads of d = 32 and 64, 8192 and 32768 tokens) in fp32, forward and training: L = 8 2.9 to 5.7 and 2.9 to
# 5.0; 16 1.6 to 3.4 and 1.6 to 2.7; 32 1.3 to 2.4 and 1.2 to 1.8; 64 (8192) 1.04 to 1.17 and 0.99 to 1.00. bf16 at
# 8192: up to 32 1.2 to 2.3 and 3.2 to 4.6; 64 0.93 to 1.04 and 4.8. Not measured on a GPU.
CONTEXT_KEYS = {"cpu": 32}


def holds(frames: int, head_dim: int, element_bytes: int, fused: bool) -> bool:
    """Whether one position fits the registers of a program; `fused`: norm or rotation take part."""
    rows, width = max(16, _power_of_two(frames)), max(16, _power_of_two(head_dim))
    if element_bytes == 4 and not fused and rows <= 64 and width <= NARROW_WIDTH:
        return True
    limits = MAX_FUSED_ELEMENTS if fused else MAX_ELEMENTS
    return rows * max(rows, width) <= limits.get(element_bytes, 0)


def tile_config(frames: int, head_dim: int, element_bytes: int, *, backward: bool, fused: bool) -> TileConfig:
    """One program per head and block of positions: so many that an operand has the elements that registers hold.

    Args:
        fused: norm or rotation take part.
    """
    rows, width = max(16, _power_of_two(frames)), max(16, _power_of_two(head_dim))
    budget = BACKWARD_ELEMENTS if backward else FORWARD_ELEMENTS
    budget //= (2 if element_bytes == 4 else 1) * (2 if fused else 1)
    position = rows * max(width, rows)
    tiles = max(1, min(16, budget // position))
    over = position * tiles > budget
    num_warps = 8 if budget >= 2048 or over else 4
    return TileConfig(rows, 8 if frames <= 8 else rows, tiles, width, num_warps)
