"""Shapes, samples and signatures that the specs of every op which draws noise have in common."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

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


# Of every kernel that draws noise.
FRAME_TYPES = {"frames": "i32", "shared": "fp32", "own": "fp32"}
# Videos of correlated frames: frames that begin inside a counter in the order of e and as planes, planes of four
# channels, frames of whole counters.
CORRELATED = (
    ("mixed", (2, 3, 4, 2, 5), True),
    ("progressive", (1, 3, 3, 3, 2), False),
    ("progressive", (2, 4, 3, 3, 2), False),
    ("mixed", (1, 4, 3, 2, 2), True),
)


def correlated_cases() -> Iterator[tuple[str, tuple[int, ...], bool, dict[str, Any]]]:
    """Name, shape, whether channels-last, and options of the videos that every op which draws noise is tested on."""
    for kind, shape, last in CORRELATED:
        name = "-".join([kind, "x".join(map(str, shape)), *(["cl"] if last else [])])
        yield name, shape, last, {"frame_correlation": 0.6, "correlation_kind": kind}


def channels_last(x: torch.Tensor) -> torch.Tensor:
    """The same values in channels-last memory, a leaf as before."""
    return x.detach().movedim(1, -1).contiguous().movedim(-1, 1).requires_grad_(x.requires_grad)
