"""Triton kernel: one program per tile of one sample's counters."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from vdiff_fast import _library
from vdiff_fast.ops._philox_triton import counter_word, element_normals, flat_normals
from vdiff_fast.ops.noise.config import DRAW
from vdiff_fast.ops.noise.native import fake_correlated_noise, fake_noise
from vdiff_fast.ops.noise.reference import SHARED_STREAM

_SHARED_STREAM = tl.constexpr(SHARED_STREAM)


@triton.jit
def noise_kernel(seed_ptr, offset_ptr, stream_ptr, y_ptr, elements, tiles, QUADS: tl.constexpr):
    program = tl.program_id(0).to(tl.int64)
    sample, tile = program // tiles, program % tiles
    n = flat_normals(
        tl.load(seed_ptr), counter_word(offset_ptr) + sample, counter_word(stream_ptr), tile * QUADS, QUADS
    )
    at = tile * (4 * QUADS) + tl.arange(0, 4 * QUADS)
    tl.store(y_ptr + sample * elements + at, n.to(y_ptr.dtype.element_ty), mask=at < elements)


@triton.jit
def _frame_normals(seed, sample, stream, first, tile, QUADS: tl.constexpr, ALIGNED: tl.constexpr):
    """Normals of a tile of a frame whose first element is `first`; ALIGNED: a frame holds whole counters."""
    if ALIGNED:
        n = flat_normals(seed, sample, stream, first // 4 + tile * QUADS, QUADS)
    else:
        n = element_normals(seed, sample, stream, first + tile * (4 * QUADS) + tl.arange(0, 4 * QUADS))
    return n


@triton.jit
def correlated_kernel(
    seed_ptr, offset_ptr, stream_ptr, y_ptr, shared, own, elements, frames, tiles,
    PROGRESSIVE: tl.constexpr, ALIGNED: tl.constexpr, QUADS: tl.constexpr,
):  # fmt: skip
    """A tile of all frames of a sample: what frames share stays in registers."""
    program = tl.program_id(0).to(tl.int64)
    sample, tile = program // tiles, program % tiles
    seed, index, stream = tl.load(seed_ptr), counter_word(offset_ptr) + sample, counter_word(stream_ptr)
    shared, own = tl.cast(shared, tl.float32), tl.cast(own, tl.float32)
    at = tile * (4 * QUADS) + tl.arange(0, 4 * QUADS)
    y_ptr += sample * frames * elements
    zero = tile * 0
    if PROGRESSIVE:
        carried = tl.zeros((4 * QUADS,), tl.float32)
    else:
        carried = _frame_normals(seed, index, stream ^ _SHARED_STREAM, zero, tile, QUADS, ALIGNED)
    frame = zero
    while frame < frames:
        n = _frame_normals(seed, index, stream, frame * elements, tile, QUADS, ALIGNED)
        z = shared * carried + own * n
        if PROGRESSIVE:
            z = tl.where(frame == 0, n, z)
            carried = z
        tl.store(y_ptr + frame * elements + at, z.to(y_ptr.dtype.element_ty), mask=at < elements)
        frame += 1


def _launch_correlated(
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
        elements = per_sample // frames
        tiles = triton.cdiv(elements, 4 * DRAW.quads)
        correlated_kernel[(batch * tiles,)](
            seed, sample_offset, stream, y, shared, own, elements, frames, tiles, PROGRESSIVE=progressive,
            ALIGNED=elements % 4 == 0, QUADS=DRAW.quads, num_warps=DRAW.num_warps, enable_fp_fusion=False,
        )  # fmt: skip
    return y


_library.define_triton(
    "correlated_noise(Tensor seed, Tensor? sample_offset, Tensor? stream, SymInt batch, SymInt per_sample, "
    "ScalarType dtype, SymInt frames, float shared, float own, bool progressive) -> Tensor",
    _launch_correlated,
    fake_correlated_noise,
)


def correlated_noise(*arguments: Any) -> Tensor:
    return torch.ops.vdiff_fast_triton.correlated_noise.default(*arguments)


def _launch(
    seed: Tensor, sample_offset: Tensor | None, stream: Tensor | None, batch: int, per_sample: int, dtype: torch.dtype
) -> Tensor:
    y = fake_noise(seed, sample_offset, stream, batch, per_sample, dtype)
    if y.numel():
        tiles = triton.cdiv(per_sample, 4 * DRAW.quads)
        noise_kernel[(batch * tiles,)](
            seed, sample_offset, stream, y, per_sample, tiles,
            QUADS=DRAW.quads, num_warps=DRAW.num_warps, enable_fp_fusion=False,
        )  # fmt: skip
    return y


_library.define_triton(
    "noise(Tensor seed, Tensor? sample_offset, Tensor? stream, SymInt batch, SymInt per_sample, ScalarType dtype) "
    "-> Tensor",
    _launch,
    fake_noise,
)


def noise(
    seed: Tensor, sample_offset: Tensor | None, stream: Tensor | None, batch: int, per_sample: int, dtype: torch.dtype
) -> Tensor:
    return torch.ops.vdiff_fast_triton.noise.default(seed, sample_offset, stream, batch, per_sample, dtype)
