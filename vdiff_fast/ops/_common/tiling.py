"""Launch parameters of the Triton kernels that draw noise."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class DrawConfig:
    quads: int
    num_warps: int


# Two counters a thread: eight elements fill a 16-byte access in half precision. Not measured on a GPU yet.
DRAW = DrawConfig(quads=256, num_warps=4)

# How a tile's elements lie in memory: in the order of e; planes of channels whose counters hold four channels of one
# position; or planes with any number of channels.
FLAT, PLANES_OF_FOUR, PLANES = 0, 1, 2


# Noise of a video's frames.
INDEPENDENT, MIXED, PROGRESSIVE = 0, 1, 2


@dataclass(frozen=True)
class Tiling:
    """(channels, positions) of a sample, the modes, and the tiles a sample takes, or its every frame if correlated."""

    mode: int
    channels: int
    positions: int
    tiles: int
    correlation: int

    @staticmethod
    def of(
        x: Tensor, drawn: bool = True, frames: int = 0, progressive: bool = False, config: DrawConfig = DRAW
    ) -> Tiling:
        """Channels-last memory, and every rank without a channel axis, is in the order of e."""
        elements = x.numel() // x.shape[0]
        channels = x.shape[1] if x.dim() in (4, 5) and x.is_contiguous() and drawn else 1
        correlation = (PROGRESSIVE if progressive else MIXED) if frames and drawn else INDEPENDENT
        in_frame = elements // (frames if correlation else 1)
        positions, most = elements // channels, 4 * config.quads
        if channels == 1 or positions == 1:
            # A frame may begin inside a counter.
            mode = FLAT if not correlation or in_frame % 4 == 0 else PLANES
            return Tiling(mode, 1, elements, -(-in_frame // most), correlation)
        if channels % 4 == 0:
            tiles = channels // 4 * -(-(in_frame // channels) // config.quads)
            return Tiling(PLANES_OF_FOUR, channels, positions, tiles, correlation)
        return Tiling(PLANES, channels, positions, -(-in_frame // most), correlation)

    @property
    def constants(self) -> dict[str, int]:
        """Constants and launch options that every kernel which draws noise takes."""
        return {
            "MODE": self.mode, "CORRELATION": self.correlation, "QUADS": DRAW.quads, "num_warps": DRAW.num_warps,
            "enable_fp_fusion": False,
        }  # fmt: skip
