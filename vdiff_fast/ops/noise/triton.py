"""Triton kernel: one program per tile of one sample's counters."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from vdiff_fast import _library
from vdiff_fast.ops._philox_triton import counter_word, flat_normals
from vdiff_fast.ops.noise.config import DRAW
from vdiff_fast.ops.noise.native import fake_noise


@triton.jit
def noise_kernel(seed_ptr, offset_ptr, stream_ptr, y_ptr, elements, tiles, QUADS: tl.constexpr):
    program = tl.program_id(0).to(tl.int64)
    sample, tile = program // tiles, program % tiles
    n = flat_normals(
        tl.load(seed_ptr), counter_word(offset_ptr) + sample, counter_word(stream_ptr), tile * QUADS, QUADS
    )
    at = tile * (4 * QUADS) + tl.arange(0, 4 * QUADS)
    tl.store(y_ptr + sample * elements + at, n.to(y_ptr.dtype.element_ty), mask=at < elements)


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
