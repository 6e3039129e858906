"""Triton kernel: the phase in float64, so that no step loses it, and the polynomials of the noise in float32."""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from vdiff_fast import _library
from vdiff_fast.ops._common.triton.sincos import sincos
from vdiff_fast.ops.timestep_embedding.config import TILE
from vdiff_fast.ops.timestep_embedding.native import fake_timestep_embedding


@triton.jit
def embedding_kernel(
    t_ptr, y_ptr, dim, tiles, RATE: tl.constexpr, SCALE: tl.constexpr, FLIP: tl.constexpr, BLOCK: tl.constexpr
):
    """RATE and SCALE are constants: a scalar argument would be rounded to float32."""
    program = tl.program_id(0).to(tl.int64)
    row, tile = program // tiles, program % tiles
    half = dim // 2
    i = tile * BLOCK + tl.arange(0, BLOCK)
    mask = i < half
    time = tl.load(t_ptr + row).to(tl.float64) * SCALE
    sine, cosine = sincos(time * tl.exp(i.to(tl.float64) * RATE))
    y_ptr += row * dim
    tl.store(y_ptr + i + (half if FLIP else 0), sine.to(y_ptr.dtype.element_ty), mask=mask)
    tl.store(y_ptr + i + (0 if FLIP else half), cosine.to(y_ptr.dtype.element_ty), mask=mask)
    # An odd dim ends in a zero.
    tl.store(y_ptr + 2 * half + i, tl.zeros((BLOCK,), y_ptr.dtype.element_ty), mask=i < dim - 2 * half)


def _launch(
    t: Tensor, dim: int, max_period: float, shift: float, flip_sin_to_cos: bool, scale: float, dtype: torch.dtype
) -> Tensor:
    y = torch.empty((t.shape[0], dim), dtype=dtype, device=t.device)
    if y.numel():
        half = dim // 2
        tiles = triton.cdiv(half, TILE.block)
        embedding_kernel[(t.shape[0] * tiles,)](
            t, y, dim, tiles, RATE=-math.log(max_period) / (half - shift), SCALE=scale, FLIP=flip_sin_to_cos,
            BLOCK=TILE.block, num_warps=TILE.num_warps,
        )  # fmt: skip
    return y


_library.define_triton(
    "timestep_embedding(Tensor t, SymInt dim, float max_period, float shift, bool flip_sin_to_cos, float scale, "
    "ScalarType dtype) -> Tensor",
    _launch,
    fake_timestep_embedding,
)


def timestep_embedding(
    t: Tensor, dim: int, max_period: float, shift: float, flip_sin_to_cos: bool, scale: float, dtype: torch.dtype
) -> Tensor:
    return torch.ops.vdiff_fast_triton.timestep_embedding.default(
        t, dim, max_period, shift, flip_sin_to_cos, scale, dtype
    )
