"""Triton kernel: one program per tile of one sample; the noise lives in registers only."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from vdiff_fast import _library
from vdiff_fast.ops._common.tiling import Tiling
from vdiff_fast.ops._common.triton.philox import (
    counter_word,
    element_normals,
    flat_normals,
    frame_normals,
    frame_tile,
    normals,
    shared_normals,
)
from vdiff_fast.ops._common.triton.schedule import coefficients
from vdiff_fast.ops.q_sample.native import fake_q_sample


@triton.jit
def _mix(x0_ptr, out_ptr, at, n, a, b, mask):
    x = tl.load(x0_ptr + at, mask=mask, other=0.0).to(tl.float32)
    tl.store(out_ptr + at, (a * x + b * n).to(out_ptr.dtype.element_ty), mask=mask)


@triton.jit
def q_sample_kernel(
    x0_ptr, t_ptr, signal_ptr, scale_ptr, noise_ptr, seed_ptr, offset_ptr, stream_ptr, out_ptr,
    steps, channels, positions, tiles, frames, shared, own,
    CORRELATION: tl.constexpr, MODE: tl.constexpr, QUADS: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0).to(tl.int64)
    sample, tile = program // tiles, program % tiles
    a, b = coefficients(t_ptr, signal_ptr, scale_ptr, steps, sample)
    base = sample * channels * positions
    x0_ptr += base
    out_ptr += base
    at = tile * (4 * QUADS) + tl.arange(0, 4 * QUADS)
    inside = at < tl.cast(channels, tl.int64) * positions
    if seed_ptr is None:
        n = tl.zeros((4 * QUADS,), tl.float32)
        if noise_ptr is not None:
            n = tl.load(noise_ptr + base + at, mask=inside, other=0.0).to(tl.float32)
        _mix(x0_ptr, out_ptr, at, n, a, b, inside)
    else:
        seed, stream = tl.load(seed_ptr), counter_word(stream_ptr)
        index = counter_word(offset_ptr) + sample
        if CORRELATION != 0:
            length = positions // frames
            at, element, inside = frame_tile(channels, positions, frames, tile, MODE, QUADS)
            carried = shared_normals(seed, index, stream, element, channels, tile, CORRELATION, MODE, QUADS)
            frame = tile * 0
            while frame < frames:
                n = frame_normals(seed, index, stream, frame, length, element, channels, tile, carried, shared, own,
                                  CORRELATION, MODE, QUADS)  # fmt: skip
                _mix(x0_ptr, out_ptr, at + frame * length, n, a, b, inside)
                if CORRELATION == 2:
                    carried = n
                frame += 1
        elif MODE == 0:
            n = flat_normals(seed, index, stream, tile * QUADS, QUADS)
            _mix(x0_ptr, out_ptr, at, n, a, b, inside)
        elif MODE == 1:
            fours = channels // 4
            four, position = tile % fours, tile // fours * QUADS + tl.arange(0, QUADS)
            n0, n1, n2, n3 = normals(seed, index, stream, position * fours + four)
            plane, mask = position + four * 4 * positions, position < positions
            _mix(x0_ptr, out_ptr, plane, n0, a, b, mask)
            _mix(x0_ptr, out_ptr, plane + positions, n1, a, b, mask)
            _mix(x0_ptr, out_ptr, plane + 2 * positions, n2, a, b, mask)
            _mix(x0_ptr, out_ptr, plane + 3 * positions, n3, a, b, mask)
        else:
            n = element_normals(seed, index, stream, at % positions * channels + at // positions)
            _mix(x0_ptr, out_ptr, at, n, a, b, inside)


def _launch(
    x0: Tensor,
    t: Tensor,
    signal: Tensor,
    noise_scale: Tensor,
    noise: Tensor | None,
    seed: Tensor | None,
    sample_offset: Tensor | None,
    stream: Tensor | None,
    frames: int,
    shared: float,
    own: float,
    progressive: bool,
) -> Tensor:
    out = torch.empty_like(x0)
    if out.numel():
        tiling = Tiling.of(x0, seed is not None, frames, progressive)
        q_sample_kernel[(x0.shape[0] * tiling.tiles,)](
            x0, t, signal, noise_scale, noise, seed, sample_offset, stream, out,
            signal.numel(), tiling.channels, tiling.positions, tiling.tiles, frames, shared, own, **tiling.constants,
        )  # fmt: skip
    return out


_library.define_triton(
    "q_sample(Tensor x0, Tensor t, Tensor signal, Tensor noise_scale, Tensor? noise, Tensor? seed, "
    "Tensor? sample_offset, Tensor? stream, SymInt frames, float shared, float own, bool progressive) -> Tensor",
    _launch,
    fake_q_sample,
)


def q_sample(*arguments: Any) -> Tensor:
    return torch.ops.vdiff_fast_triton.q_sample.default(*arguments)
