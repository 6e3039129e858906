"""Triton kernel: one program per tile of one sample's counters, or of its every frame where they are correlated."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from vdiff_fast import _library
from vdiff_fast.ops._common.tiling import Tiling
from vdiff_fast.ops._common.triton.philox import counter_word, flat_normals, frame_normals, frame_tile, shared_normals
from vdiff_fast.ops.noise.native import fake_noise


@triton.jit
def noise_kernel(
    seed_ptr, offset_ptr, stream_ptr, y_ptr, elements, tiles, frames, shared, own,
    CORRELATION: tl.constexpr, MODE: tl.constexpr, QUADS: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0).to(tl.int64)
    sample, tile = program // tiles, program % tiles
    seed, index, stream = tl.load(seed_ptr), counter_word(offset_ptr) + sample, counter_word(stream_ptr)
    y_ptr += sample * elements
    if CORRELATION == 0:
        n = flat_normals(seed, index, stream, tile * QUADS, QUADS)
        at = tile * (4 * QUADS) + tl.arange(0, 4 * QUADS)
        tl.store(y_ptr + at, n.to(y_ptr.dtype.element_ty), mask=at < elements)
    else:
        length = elements // frames
        at, element, inside = frame_tile(1, elements, frames, tile, MODE, QUADS)
        carried = shared_normals(seed, index, stream, element, 1, tile, CORRELATION, MODE, QUADS)
        frame = tile * 0
        while frame < frames:
            z = frame_normals(seed, index, stream, frame, length, element, 1, tile, carried, shared, own,
                              CORRELATION, MODE, QUADS)  # fmt: skip
            tl.store(y_ptr + at + frame * length, z.to(y_ptr.dtype.element_ty), mask=inside)
            if CORRELATION == 2:
                carried = z
            frame += 1


def _launch(
    seed: Tensor,
    sample_offset: Tensor | None,
    stream: Tensor | None,
    batch: int,
    per_sample: int,
    dtype: torch.dtype,
    frames: int,
    shared: float,
    own: float,
    progressive: bool,
) -> Tensor:
    y = fake_noise(seed, sample_offset, stream, batch, per_sample, dtype)
    if y.numel():
        tiling = Tiling.of(y, frames=frames, progressive=progressive)
        noise_kernel[(batch * tiling.tiles,)](
            seed, sample_offset, stream, y, per_sample, tiling.tiles, frames, shared, own, **tiling.constants
        )
    return y


_library.define_triton(
    "noise(Tensor seed, Tensor? sample_offset, Tensor? stream, SymInt batch, SymInt per_sample, ScalarType dtype, "
    "SymInt frames, float shared, float own, bool progressive) -> Tensor",
    _launch,
    fake_noise,
)


def noise(*arguments: Any) -> Tensor:
    return torch.ops.vdiff_fast_triton.noise.default(*arguments)
