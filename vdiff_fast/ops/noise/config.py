"""Launch parameters of the Triton kernels that draw noise."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

# Benchmarks: latents of Stable Video Diffusion and Wan, and pixels of a small model.
BENCH_SHAPES = {
    "svd_latent": (2, 4, 14, 72, 128),
    "wan_latent": (1, 16, 21, 60, 104),
    "pixels": (4, 3, 16, 64, 64),
}
# Shapes that are measured in contiguous memory too, where torch draws noise faster.
CONTIGUOUS = ("svd_latent", "pixels")


def bench_layouts() -> Iterator[tuple[str, tuple[int, ...], bool]]:
    """Name, shape and whether the memory is channels-last, of every case that draws noise for a video."""
    for name, shape in BENCH_SHAPES.items():
        yield name, shape, True
    for name in CONTIGUOUS:
        yield f"{name}-contiguous", BENCH_SHAPES[name], False


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


def triton_type(dtype: torch.dtype) -> str:
    """The pointer type of an AOT signature."""
    return {torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.float16: "*fp16"}[dtype]
