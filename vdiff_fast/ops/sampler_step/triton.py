"""Triton kernels: the step in one pass; before it, where asked for, the spread of y or the size of x0."""

from __future__ import annotations

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
from vdiff_fast.ops._common.triton.sums import rounded_product
from vdiff_fast.ops.sampler_step import columns
from vdiff_fast.ops.sampler_step.config import SPREAD
from vdiff_fast.ops.sampler_step.native import Call, fake_sampler_step
from vdiff_fast.ops.sampler_step.reference import quantile

_X0_X = tl.constexpr(columns.X0_X)
_X0_Y = tl.constexpr(columns.X0_Y)
_X = tl.constexpr(columns.X)
_X0 = tl.constexpr(columns.X0)
_Y = tl.constexpr(columns.Y)
_PREVIOUS = tl.constexpr(columns.PREVIOUS)
_NOISE = tl.constexpr(columns.NOISE)
_GUIDANCE = tl.constexpr(columns.GUIDANCE)
_PREVIOUS2 = tl.constexpr(columns.PREVIOUS2)
_COLUMNS = tl.constexpr(columns.COLUMNS)
_FIXED = tl.constexpr(columns.FIXED)
_DYNAMIC = tl.constexpr(columns.DYNAMIC)


@triton.jit
def _coefficient(table_ptr, step, steps, column: tl.constexpr):
    """NaN outside the table."""
    inside = (step >= 0) & (step < steps)
    return tl.load(table_ptr + step * _COLUMNS + column, mask=inside, other=float("nan"))


@triton.jit
def _guided(prediction_ptr, uncond_ptr, at, mask, guidance):
    y = tl.load(prediction_ptr + at, mask=mask, other=0.0).to(tl.float32)
    if uncond_ptr is not None:
        uncond = tl.load(uncond_ptr + at, mask=mask, other=0.0).to(tl.float32)
        y = uncond + guidance * (y - uncond)
    return y


@triton.jit
def _clamp(x, limit):
    """A NaN stays a NaN."""
    return tl.where(x > limit, limit, tl.where(x < -limit, -limit, x))


@triton.jit
def _update(
    x_ptr, prediction_ptr, uncond_ptr, previous_ptr, previous2_ptr, x_prev_ptr, x0_ptr, at, mask, n, row_ptr, step,
    steps, bias, scale, limit, CLIP: tl.constexpr,
):  # fmt: skip
    x = tl.load(x_ptr + at, mask=mask, other=0.0).to(tl.float32)
    y = _guided(prediction_ptr, uncond_ptr, at, mask, _coefficient(row_ptr, step, steps, _GUIDANCE)) * scale
    x0 = _coefficient(row_ptr, step, steps, _X0_X) * x + _coefficient(row_ptr, step, steps, _X0_Y) * y
    if CLIP == _FIXED:
        x0 = _clamp(x0, limit)
    if CLIP == _DYNAMIC:
        x0 = _clamp(x0, limit) / limit
    update = _coefficient(row_ptr, step, steps, _X) * x + _coefficient(row_ptr, step, steps, _X0) * x0
    update += _coefficient(row_ptr, step, steps, _Y) * y + bias
    if previous_ptr is not None:
        previous = tl.load(previous_ptr + at, mask=mask, other=0.0).to(tl.float32)
        update += _coefficient(row_ptr, step, steps, _PREVIOUS) * previous
    if previous2_ptr is not None:
        previous2 = tl.load(previous2_ptr + at, mask=mask, other=0.0).to(tl.float32)
        update += _coefficient(row_ptr, step, steps, _PREVIOUS2) * previous2
    update += _coefficient(row_ptr, step, steps, _NOISE) * n
    tl.store(x_prev_ptr + at, update.to(x_prev_ptr.dtype.element_ty), mask=mask)
    tl.store(x0_ptr + at, x0.to(x0_ptr.dtype.element_ty), mask=mask)


@triton.jit
def update_kernel(
    x_ptr, prediction_ptr, uncond_ptr, previous_ptr, previous2_ptr, noise_ptr, seed_ptr, offset_ptr, stream_ptr,
    table_ptr, step_ptr, scale_ptr, limit_ptr, x_prev_ptr, x0_ptr, clip, steps, channels, positions, tiles,
    frames, shared, own, CLIP: tl.constexpr, CORRELATION: tl.constexpr, MODE: tl.constexpr, QUADS: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0).to(tl.int64)
    sample, tile = program // tiles, program % tiles
    step = tl.load(step_ptr)
    base = sample * channels * positions
    x_ptr += base
    prediction_ptr += base
    x_prev_ptr += base
    x0_ptr += base
    if uncond_ptr is not None:
        uncond_ptr += base
    scale = tl.cast(1.0, tl.float32)
    if scale_ptr is not None:
        scale = tl.load(scale_ptr + sample)
    limit = tl.cast(clip, tl.float32)
    if limit_ptr is not None:
        limit = tl.load(limit_ptr + sample)
    # A term that is wanted and missing makes NaN.
    bias = tl.cast(0.0, tl.float32)
    if previous_ptr is not None:
        previous_ptr += base
    else:
        bias += tl.where(_coefficient(table_ptr, step, steps, _PREVIOUS) == 0.0, 0.0, float("nan"))
    if previous2_ptr is not None:
        previous2_ptr += base
    else:
        bias += tl.where(_coefficient(table_ptr, step, steps, _PREVIOUS2) == 0.0, 0.0, float("nan"))
    strength = _coefficient(table_ptr, step, steps, _NOISE)
    at = tile * (4 * QUADS) + tl.arange(0, 4 * QUADS)
    inside = at < tl.cast(channels, tl.int64) * positions
    if seed_ptr is None:
        n = tl.zeros((4 * QUADS,), tl.float32)
        if noise_ptr is not None:
            n = tl.load(noise_ptr + base + at, mask=inside, other=0.0).to(tl.float32)
        else:
            bias += tl.where(strength == 0.0, 0.0, float("nan"))
        _update(x_ptr, prediction_ptr, uncond_ptr, previous_ptr, previous2_ptr, x_prev_ptr, x0_ptr, at, inside, n,
                table_ptr, step, steps, bias, scale, limit, CLIP)  # fmt: skip
    else:
        seed, index = tl.load(seed_ptr), counter_word(offset_ptr) + sample
        if stream_ptr is None:
            stream = step + 1
        else:
            stream = tl.load(stream_ptr)
        if CORRELATION != 0:
            length = positions // frames
            at, element, inside = frame_tile(channels, positions, frames, tile, MODE, QUADS)
            carried = shared_normals(seed, index, stream, element, channels, tile, CORRELATION, MODE, QUADS)
            frame = tile * 0
            while frame < frames:
                n = frame_normals(seed, index, stream, frame, length, element, channels, tile, carried, shared, own,
                                  CORRELATION, MODE, QUADS)  # fmt: skip
                _update(x_ptr, prediction_ptr, uncond_ptr, previous_ptr, previous2_ptr, x_prev_ptr, x0_ptr,
                        at + frame * length, inside, n, table_ptr, step, steps, bias, scale, limit, CLIP)  # fmt: skip
                if CORRELATION == 2:
                    carried = n
                frame += 1
        elif MODE == 0:
            n = tl.zeros((4 * QUADS,), tl.float32)
            if strength != 0.0:
                n = flat_normals(seed, index, stream, tile * QUADS, QUADS)
            _update(x_ptr, prediction_ptr, uncond_ptr, previous_ptr, previous2_ptr, x_prev_ptr, x0_ptr, at, inside, n,
                    table_ptr, step, steps, bias, scale, limit, CLIP)  # fmt: skip
        elif MODE == 1:
            fours = channels // 4
            four, position = tile % fours, tile // fours * QUADS + tl.arange(0, QUADS)
            n0, n1, n2, n3 = normals(seed, index, stream, position * fours + four)
            plane, mask = position + four * 4 * positions, position < positions
            _update(x_ptr, prediction_ptr, uncond_ptr, previous_ptr, previous2_ptr, x_prev_ptr, x0_ptr, plane, mask, n0,
                    table_ptr, step, steps, bias, scale, limit, CLIP)  # fmt: skip
            plane += positions
            _update(x_ptr, prediction_ptr, uncond_ptr, previous_ptr, previous2_ptr, x_prev_ptr, x0_ptr, plane, mask, n1,
                    table_ptr, step, steps, bias, scale, limit, CLIP)  # fmt: skip
            plane += positions
            _update(x_ptr, prediction_ptr, uncond_ptr, previous_ptr, previous2_ptr, x_prev_ptr, x0_ptr, plane, mask, n2,
                    table_ptr, step, steps, bias, scale, limit, CLIP)  # fmt: skip
            plane += positions
            _update(x_ptr, prediction_ptr, uncond_ptr, previous_ptr, previous2_ptr, x_prev_ptr, x0_ptr, plane, mask, n3,
                    table_ptr, step, steps, bias, scale, limit, CLIP)  # fmt: skip
        else:
            n = element_normals(seed, index, stream, at % positions * channels + at // positions)
            _update(x_ptr, prediction_ptr, uncond_ptr, previous_ptr, previous2_ptr, x_prev_ptr, x0_ptr, at, inside, n,
                    table_ptr, step, steps, bias, scale, limit, CLIP)  # fmt: skip


@triton.jit
def magnitude_kernel(
    x_ptr, prediction_ptr, uncond_ptr, table_ptr, step_ptr, scale_ptr, out_ptr, steps, elements, tiles,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """|x0| before clipping, float32."""
    program = tl.program_id(0).to(tl.int64)
    sample, tile = program // tiles, program % tiles
    step = tl.load(step_ptr)
    at = tile * BLOCK + tl.arange(0, BLOCK)
    mask = at < elements
    at += sample * elements
    scale = tl.cast(1.0, tl.float32)
    if scale_ptr is not None:
        scale = tl.load(scale_ptr + sample)
    x = tl.load(x_ptr + at, mask=mask, other=0.0).to(tl.float32)
    y = _guided(prediction_ptr, uncond_ptr, at, mask, _coefficient(table_ptr, step, steps, _GUIDANCE)) * scale
    x0 = _coefficient(table_ptr, step, steps, _X0_X) * x + _coefficient(table_ptr, step, steps, _X0_Y) * y
    tl.store(out_ptr + at, tl.abs(x0), mask=mask)


@triton.jit
def _moments(values, mask, count):
    """Mean and squared deviations of a tile in registers; what rounding the mean missed comes out of both."""
    mean = tl.sum(tl.where(mask, values, 0.0)) / count
    deviations = tl.where(mask, values - mean, 0.0)
    rest = tl.sum(deviations)
    return mean + rest / count, tl.sum(rounded_product(deviations, deviations)) - rest * rest / count


@triton.jit
def spread_kernel(
    prediction_ptr, uncond_ptr, table_ptr, step_ptr, parts_ptr, steps, elements, tiles, BLOCK: tl.constexpr
):
    """Of each tile: mean and squares of the prediction, mean and squares of y."""
    program = tl.program_id(0).to(tl.int64)
    sample, tile = program // tiles, program % tiles
    step = tl.load(step_ptr)
    at = tile * BLOCK + tl.arange(0, BLOCK)
    mask = at < elements
    count = tl.minimum(elements - tile * BLOCK, BLOCK).to(tl.float32)
    at += sample * elements
    prediction = tl.load(prediction_ptr + at, mask=mask, other=0.0).to(tl.float32)
    y = _guided(prediction_ptr, uncond_ptr, at, mask, _coefficient(table_ptr, step, steps, _GUIDANCE))
    mean, squares = _moments(prediction, mask, count)
    tl.store(parts_ptr + program * 4, mean)
    tl.store(parts_ptr + program * 4 + 1, squares)
    mean, squares = _moments(y, mask, count)
    tl.store(parts_ptr + program * 4 + 2, mean)
    tl.store(parts_ptr + program * 4 + 3, squares)


@triton.jit
def _merge(parts_ptr, sample, elements, tiles, BLOCK: tl.constexpr, PARTS: tl.constexpr):
    """Squared deviations of a sample from those of its tiles, around the first tile's mean."""
    first = tl.load(parts_ptr + sample * tiles * 4)
    sums = tl.zeros((PARTS,), tl.float32)
    squares = tl.zeros((PARTS,), tl.float32)
    # Triton 3.6's interpreter takes no runtime bound in a range under NumPy 2.4.
    start = tiles * 0
    while start < tiles:
        tile = start + tl.arange(0, PARTS)
        mask = tile < tiles
        count = tl.minimum(elements - tile * BLOCK, BLOCK).to(tl.float32)
        part = parts_ptr + (sample * tiles + tile) * 4
        shift = tl.load(part, mask=mask, other=0.0) - first
        sums += tl.where(mask, shift * count, 0.0)
        squares += tl.where(mask, tl.load(part + 1, mask=mask, other=0.0) + shift * shift * count, 0.0)
        start += PARTS
    total = tl.sum(sums)
    return tl.sum(squares) - total * (total / elements)


@triton.jit
def rescale_kernel(parts_ptr, scale_ptr, rescale, elements, tiles, BLOCK: tl.constexpr, PARTS: tl.constexpr):
    sample = tl.program_id(0).to(tl.int64)
    before = _merge(parts_ptr, sample, elements, tiles, BLOCK, PARTS)
    after = _merge(parts_ptr + 2, sample, elements, tiles, BLOCK, PARTS)
    share = tl.cast(rescale, tl.float32)
    # A constant y has no contrast to restore; rounding can bring either sum of squares below 0.
    constant = after <= 0.0
    ratio = tl.sqrt_rn(tl.where(before < 0.0, 0.0, before) / tl.where(constant, 1.0, after))
    tl.store(scale_ptr + sample, share * tl.where(constant, 1.0, ratio) + (1.0 - share))


def _rescale_factors(c: Call, elements: int) -> Tensor:
    batch, tiles = c.x.shape[0], triton.cdiv(elements, SPREAD.block)
    parts = torch.empty((batch * tiles, 4), dtype=torch.float32, device=c.x.device)
    scale = torch.empty(batch, dtype=torch.float32, device=c.x.device)
    spread_kernel[(batch * tiles,)](
        c.prediction, c.uncond, c.table, c.step, parts, c.table.shape[0], elements, tiles,
        BLOCK=SPREAD.block, num_warps=SPREAD.num_warps, enable_fp_fusion=False,
    )  # fmt: skip
    rescale_kernel[(batch,)](
        parts,
        scale,
        c.guidance_rescale,
        elements,
        tiles,
        BLOCK=SPREAD.block,
        PARTS=SPREAD.parts,
        enable_fp_fusion=False,
    )
    return scale


def _dynamic_limits(c: Call, scale: Tensor | None, elements: int) -> Tensor:
    batch, tiles = c.x.shape[0], triton.cdiv(elements, SPREAD.block)
    magnitude = torch.empty((batch, elements), dtype=torch.float32, device=c.x.device)
    magnitude_kernel[(batch * tiles,)](
        c.x, c.prediction, c.uncond, c.table, c.step, scale, magnitude, c.table.shape[0], elements, tiles,
        BLOCK=SPREAD.block, num_warps=SPREAD.num_warps, enable_fp_fusion=False,
    )  # fmt: skip
    return quantile(magnitude, c.clip).clamp(min=1, max=c.clip_max)


def _launch(*arguments: Tensor | float | None) -> tuple[Tensor, Tensor]:
    c = Call(*arguments)  # type: ignore[arg-type]
    x_prev, x0 = torch.empty_like(c.x), torch.empty_like(c.x)
    if not c.x.numel():
        return x_prev, x0
    elements = c.x.numel() // c.x.shape[0]
    scale = _rescale_factors(c, elements) if c.uncond is not None and c.guidance_rescale else None
    limit = _dynamic_limits(c, scale, elements) if c.clip_mode == columns.DYNAMIC else None
    tiling = Tiling.of(c.x, c.seed is not None, c.frames, c.progressive)
    update_kernel[(c.x.shape[0] * tiling.tiles,)](
        c.x, c.prediction, c.uncond, c.previous, c.previous2, c.noise, c.seed, c.sample_offset, c.stream, c.table,
        c.step, scale, limit, x_prev, x0, c.clip, c.table.shape[0], tiling.channels, tiling.positions, tiling.tiles,
        c.frames, c.shared, c.own, CLIP=c.clip_mode, **tiling.constants,
    )  # fmt: skip
    return x_prev, x0


_library.define_triton(
    "sampler_step(Tensor x, Tensor prediction, Tensor table, Tensor step, Tensor? uncond, Tensor? previous, "
    "Tensor? previous2, Tensor? noise, Tensor? seed, Tensor? sample_offset, Tensor? stream, float guidance_rescale, "
    "int clip_mode, float clip, float clip_max, SymInt frames, float shared, float own, bool progressive) "
    "-> (Tensor, Tensor)",
    _launch,
    fake_sampler_step,
)


def sampler_step(c: Call) -> tuple[Tensor, Tensor]:
    return torch.ops.vdiff_fast_triton.sampler_step.default(*c)
