"""Triton kernels over tiles [channels, positions] (config.py has the terms): one read where a unit's groups fit in
registers, else partial statistics per channel, their combination, and the apply pass from the last program backwards.
"""

from __future__ import annotations

import triton
import triton.language as tl

from vdiff_fast.ops._common.triton.norm import (
    activate,
    activate_backward,
    as_column,
    element_offset,
    per_channel,
    tile_offsets,
    widen,
)
from vdiff_fast.ops._common.triton.sums import rounded_product

# Tiles that a loop asks for ahead: with one load a thread a multiprocessor would have half of the bytes on their way
# that the memory's rate needs.
STAGES = tl.constexpr(4)


@triton.jit
def _load(
    x_ptr, x2_ptr, sample, channel, position, local, r, mask, C1, C2, positions,
    HAS_X2: tl.constexpr, CHANNELS_LAST: tl.constexpr,
):  # fmt: skip
    """The tile of [x | x2] whose origin is (sample, channel, position), as float32, 0 where masked."""
    x_ptr += element_offset(sample, channel, position, C1, positions, CHANNELS_LAST)
    at = tile_offsets(local, r, C1, positions, CHANNELS_LAST)
    if HAS_X2:
        second = (channel + local >= C1)[:, None]
        value = tl.load(x_ptr + at, mask=mask & (channel + local < C1)[:, None], other=0.0).to(tl.float32)
        x2_ptr += element_offset(sample, channel - C1, position, C2, positions, CHANNELS_LAST)
        at = tile_offsets(local, r, C2, positions, CHANNELS_LAST)
        value += tl.load(x2_ptr + at, mask=mask & second, other=0.0).to(tl.float32)
    else:
        value = tl.load(x_ptr + at, mask=mask, other=0.0).to(tl.float32)
    return value


@triton.jit
def _store(
    x_ptr, x2_ptr, value, sample, channel, position, local, r, mask, C1, C2, positions,
    HAS_X2: tl.constexpr, CHANNELS_LAST: tl.constexpr,
):  # fmt: skip
    value = value.to(x_ptr.dtype.element_ty)
    x_ptr += element_offset(sample, channel, position, C1, positions, CHANNELS_LAST)
    at = tile_offsets(local, r, C1, positions, CHANNELS_LAST)
    if HAS_X2:
        tl.store(x_ptr + at, value, mask=mask & (channel + local < C1)[:, None])
        x2_ptr += element_offset(sample, channel - C1, position, C2, positions, CHANNELS_LAST)
        at = tile_offsets(local, r, C2, positions, CHANNELS_LAST)
        tl.store(x2_ptr + at, value, mask=mask & (channel + local >= C1)[:, None])
    else:
        tl.store(x_ptr + at, value, mask=mask)


@triton.jit
def _sum(tile, PRECISE: tl.constexpr):
    """Over the positions of each channel."""
    return widen(tl.sum(tile, 1), PRECISE)


@triton.jit
def _rstd(variance, eps, PRECISE: tl.constexpr):
    return 1.0 / tl.sqrt(widen(tl.maximum(variance, 0.0), PRECISE) + tl.cast(eps, tl.float32))


@triton.jit
def _coefficients(
    weight_ptr, bias_ptr, scale_ptr, shift_ptr, channel, valid, scale_row, shift_row, channels,
    HAS_WEIGHT: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_SCALE: tl.constexpr, HAS_SHIFT: tl.constexpr,
    PRECISE: tl.constexpr,
):  # fmt: skip
    """weight, bias, 1 + scale and shift of each channel."""
    weight = widen(per_channel(weight_ptr, channel, valid, HAS_WEIGHT, 1.0), PRECISE)
    bias = widen(per_channel(bias_ptr, channel, valid, HAS_BIAS, 0.0), PRECISE)
    scale = widen(per_channel(scale_ptr, scale_row.to(tl.int64) * channels + channel, valid, HAS_SCALE, 0.0), PRECISE)
    shift = widen(per_channel(shift_ptr, shift_row.to(tl.int64) * channels + channel, valid, HAS_SHIFT, 0.0), PRECISE)
    return weight, bias, 1.0 + scale, shift


@triton.jit
def _group_sum(value, group, BLOCK_K: tl.constexpr):
    """Sum of a [channel] vector over each channel's group, given back to every channel."""
    if BLOCK_K == 1:
        total = tl.zeros_like(value) + tl.sum(value, 0)
    else:
        member = group[None, :] == tl.arange(0, BLOCK_K)[:, None]
        sums = tl.sum(tl.where(member, value[None, :], 0.0), 1)
        total = tl.sum(tl.where(member, sums[:, None], 0.0), 0)
    return total


@triton.jit
def _store_channel_gradients(
    dweight_ptr, dbias_ptr, dscale_ptr, dshift_ptr, dp, dp_xhat, weight, bias, gain, at, valid,
    HAS_WEIGHT: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_SCALE: tl.constexpr, HAS_SHIFT: tl.constexpr,
):  # fmt: skip
    """One segment's share of the gradients, from the sums of dp and dp*xhat over its positions."""
    if HAS_WEIGHT:
        tl.store(dweight_ptr + at, (gain * dp_xhat).to(dweight_ptr.dtype.element_ty), mask=valid)
    if HAS_BIAS:
        tl.store(dbias_ptr + at, (gain * dp).to(dbias_ptr.dtype.element_ty), mask=valid)
    if HAS_SCALE:
        tl.store(dscale_ptr + at, (weight * dp_xhat + bias * dp).to(dscale_ptr.dtype.element_ty), mask=valid)
    if HAS_SHIFT:
        tl.store(dshift_ptr + at, dp.to(dshift_ptr.dtype.element_ty), mask=valid)


@triton.jit
def resident_forward_kernel(
    x_ptr, x2_ptr, weight_ptr, bias_ptr, scale_ptr, shift_ptr, add_ptr, y_ptr, mean_ptr, rstd_ptr,
    C1, C2, positions, length, group_channels, num_groups, slab_channels,
    segments_per_sample, segments_per_scale, segments_per_shift, eps,
    HAS_X2: tl.constexpr, HAS_WEIGHT: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_SCALE: tl.constexpr,
    HAS_SHIFT: tl.constexpr, HAS_ADD: tl.constexpr, SILU: tl.constexpr, CHANNELS_LAST: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    PRECISE: tl.constexpr = x_ptr.dtype.element_ty == tl.float32
    channels = C1 + C2
    slabs = tl.cdiv(channels, slab_channels)
    unit, slab = tl.program_id(0) // slabs, tl.program_id(0) % slabs
    sample = (unit // segments_per_sample).to(tl.int64)
    local, r = tl.arange(0, BLOCK_C), tl.arange(0, BLOCK_R)
    origin = (slab * slab_channels).to(tl.int64)
    channel = slab * slab_channels + local
    valid = (local < slab_channels) & (channel < channels)
    mask = valid[:, None] & (r < length)[None, :]
    group = local // group_channels
    start = (unit % segments_per_sample).to(tl.int64) * length
    x = _load(x_ptr, x2_ptr, sample, origin, start, local, r, mask, C1, C2, positions, HAS_X2, CHANNELS_LAST)
    if HAS_ADD:
        x = tl.where(mask, x + per_channel(add_ptr, sample * channels + channel, valid, True, 0.0)[:, None], 0.0)

    count = tl.cast(group_channels, tl.float32) * length
    mean = _group_sum(tl.sum(x, 1), group, BLOCK_K) / count
    x = tl.where(mask, x - mean[:, None], 0.0)
    rest = _group_sum(_sum(x, PRECISE), group, BLOCK_K) / count  # what rounding of a large mean left over
    variance = _group_sum(_sum(rounded_product(x, x), PRECISE), group, BLOCK_K) / count - rest * rest
    rstd = _rstd(variance, eps, PRECISE)
    first = valid & (local % group_channels == 0)
    at = unit.to(tl.int64) * num_groups + channel // group_channels
    tl.store(mean_ptr + at, (mean + rest).to(tl.float32), mask=first)
    tl.store(rstd_ptr + at, rstd.to(tl.float32), mask=first)

    weight, bias, gain, shift = _coefficients(
        weight_ptr, bias_ptr, scale_ptr, shift_ptr, channel, valid,
        unit // segments_per_scale, unit // segments_per_shift, channels,
        HAS_WEIGHT, HAS_BIAS, HAS_SCALE, HAS_SHIFT, PRECISE,
    )  # fmt: skip
    slope = rstd * weight * gain
    p = x * as_column(slope) + as_column(bias * gain + shift - rest * slope)
    y = activate(p, SILU, PRECISE)
    _store(y_ptr, y_ptr, y, sample, origin, start, local, r, mask, channels, 0, positions, False, CHANNELS_LAST)


@triton.jit
def resident_backward_kernel(
    dy_ptr, x_ptr, x2_ptr, weight_ptr, bias_ptr, mean_ptr, rstd_ptr, scale_ptr, shift_ptr, add_ptr,
    dx_ptr, dx2_ptr, dweight_ptr, dbias_ptr, dscale_ptr, dshift_ptr, dadd_ptr,
    C1, C2, positions, length, group_channels, num_groups, slab_channels,
    segments_per_sample, segments_per_scale, segments_per_shift,
    HAS_X2: tl.constexpr, HAS_WEIGHT: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_SCALE: tl.constexpr,
    HAS_SHIFT: tl.constexpr, HAS_ADD: tl.constexpr, SILU: tl.constexpr, CHANNELS_LAST: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    PRECISE: tl.constexpr = x_ptr.dtype.element_ty == tl.float32
    channels = C1 + C2
    slabs = tl.cdiv(channels, slab_channels)
    unit, slab = tl.program_id(0) // slabs, tl.program_id(0) % slabs
    sample = (unit // segments_per_sample).to(tl.int64)
    local, r = tl.arange(0, BLOCK_C), tl.arange(0, BLOCK_R)
    origin = (slab * slab_channels).to(tl.int64)
    channel = slab * slab_channels + local
    valid = (local < slab_channels) & (channel < channels)
    mask = valid[:, None] & (r < length)[None, :]
    group = local // group_channels
    start = (unit % segments_per_sample).to(tl.int64) * length
    x = _load(x_ptr, x2_ptr, sample, origin, start, local, r, mask, C1, C2, positions, HAS_X2, CHANNELS_LAST)
    dp = _load(dy_ptr, dy_ptr, sample, origin, start, local, r, mask, channels, 0, positions, False, CHANNELS_LAST)
    if HAS_ADD:
        x += per_channel(add_ptr, sample * channels + channel, valid, True, 0.0)[:, None]
    if BLOCK_K == 1:  # one group: a scalar costs no register per channel
        at = unit.to(tl.int64) * num_groups + slab
        mean = tl.load(mean_ptr + at) + tl.zeros([BLOCK_C], tl.float32)
        rstd = widen(tl.load(rstd_ptr + at) + tl.zeros([BLOCK_C], tl.float32), PRECISE)
    else:
        at = unit.to(tl.int64) * num_groups + channel // group_channels
        mean = tl.load(mean_ptr + at, mask=valid, other=0.0)
        rstd = widen(tl.load(rstd_ptr + at, mask=valid, other=0.0), PRECISE)
    weight, bias, gain, shift = _coefficients(
        weight_ptr, bias_ptr, scale_ptr, shift_ptr, channel, valid,
        unit // segments_per_scale, unit // segments_per_shift, channels,
        HAS_WEIGHT, HAS_BIAS, HAS_SCALE, HAS_SHIFT, PRECISE,
    )  # fmt: skip
    x = x - mean[:, None]
    slope = rstd * weight * gain
    dp = activate_backward(dp, x * as_column(slope) + as_column(bias * gain + shift), SILU, PRECISE)
    sum_dp = _sum(dp, PRECISE)
    sum_dp_xhat = _sum(rounded_product(dp, x), PRECISE) * rstd
    row = unit.to(tl.int64) * channels + channel
    _store_channel_gradients(
        dweight_ptr, dbias_ptr, dscale_ptr, dshift_ptr, sum_dp, sum_dp_xhat, weight, bias, gain, row, valid,
        HAS_WEIGHT, HAS_BIAS, HAS_SCALE, HAS_SHIFT,
    )  # fmt: skip

    count = tl.cast(group_channels, tl.float32) * length
    mean_g = _group_sum(rounded_product(weight * gain, sum_dp), group, BLOCK_K) / count
    mean_g_xhat = _group_sum(rounded_product(weight * gain, sum_dp_xhat), group, BLOCK_K) / count
    dx = dp * as_column(slope) - x * as_column(rstd * rstd * mean_g_xhat) - as_column(rstd * mean_g)
    if HAS_ADD:
        tl.store(dadd_ptr + row, tl.sum(tl.where(mask, dx, 0.0), 1), mask=valid)
    _store(dx_ptr, dx2_ptr, dx, sample, origin, start, local, r, mask, C1, C2, positions, HAS_X2, CHANNELS_LAST)


@triton.jit
def _chunk_of(program, channels, chunks, BLOCK_C: tl.constexpr, CHANNELS_LAST: tl.constexpr):
    """Segment, chunk and slab of a program, neighbours in memory next to each other."""
    slabs = tl.cdiv(channels, BLOCK_C)
    if CHANNELS_LAST:
        slab, chunk = program % slabs, program // slabs % chunks
    else:
        chunk, slab = program % chunks, program // chunks % slabs
    return program // (chunks * slabs), chunk, slab


@triton.jit
def _pivot(
    x_ptr, x2_ptr, add_ptr, unit, channel, valid, C1, C2, positions, length, segments_per_sample, segments_per_unit,
    HAS_X2: tl.constexpr, HAS_ADD: tl.constexpr, CHANNELS_LAST: tl.constexpr,
):  # fmt: skip
    """The first value of a unit in each channel: sums of differences to it lose nothing to a large mean."""
    segment = unit * segments_per_unit
    sample = (segment // segments_per_sample).to(tl.int64)
    position = (segment % segments_per_sample).to(tl.int64) * length
    at = element_offset(sample, channel, position, C1, positions, CHANNELS_LAST)
    if HAS_X2:
        x = tl.load(x_ptr + at, mask=valid & (channel < C1), other=0.0).to(tl.float32)
        at = element_offset(sample, channel - C1, position, C2, positions, CHANNELS_LAST)
        x += tl.load(x2_ptr + at, mask=valid & (channel >= C1), other=0.0).to(tl.float32)
    else:
        x = tl.load(x_ptr + at, mask=valid, other=0.0).to(tl.float32)
    return x + per_channel(add_ptr, sample * (C1 + C2) + channel, valid, HAS_ADD, 0.0)


@triton.jit
def statistics_kernel(
    x_ptr, x2_ptr, add_ptr, partial_mean_ptr, partial_m2_ptr,
    C1, C2, positions, length, group_channels, segments_per_sample, segments_per_unit, chunks, tiles,
    HAS_X2: tl.constexpr, HAS_ADD: tl.constexpr, CHANNELS_LAST: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_R: tl.constexpr,
):  # fmt: skip
    """Mean (less the pivot) and sum of squared deviations of each channel of one chunk, by Welford's update a lane."""
    channels = C1 + C2
    segment, chunk, slab = _chunk_of(tl.program_id(0), channels, chunks, BLOCK_C, CHANNELS_LAST)
    sample = (segment // segments_per_sample).to(tl.int64)
    first = chunk.to(tl.int64) * (tiles * BLOCK_R)
    start = (segment % segments_per_sample).to(tl.int64) * length + first
    here = tl.minimum(length - first, tiles * BLOCK_R).to(tl.int32)
    origin = (slab * BLOCK_C).to(tl.int64)
    local, lane = tl.arange(0, BLOCK_C), tl.arange(0, BLOCK_R)
    channel = slab * BLOCK_C + local
    valid = channel < channels
    pivot = _pivot(
        x_ptr, x2_ptr, add_ptr, segment // segments_per_unit, channel // group_channels * group_channels, valid,
        C1, C2, positions, length, segments_per_sample, segments_per_unit, HAS_X2, HAS_ADD, CHANNELS_LAST,
    )  # fmt: skip
    added = per_channel(add_ptr, sample * channels + channel, valid, HAS_ADD, 0.0)
    mean = tl.zeros([BLOCK_C, BLOCK_R], tl.float32)
    m2 = tl.zeros([BLOCK_C, BLOCK_R], tl.float32)
    for i in tl.range(0, tiles, num_stages=STAGES):
        r = i * BLOCK_R + lane
        mask = valid[:, None] & (r < here)[None, :]
        x = _load(x_ptr, x2_ptr, sample, origin, start, local, r, mask, C1, C2, positions, HAS_X2, CHANNELS_LAST)
        x = x + added[:, None] - pivot[:, None]
        delta = tl.where(mask, x - mean, 0.0)
        mean += delta * (1.0 / (i + 1))
        m2 += delta * (x - mean)

    counts = ((here - lane + BLOCK_R - 1) // BLOCK_R).to(tl.float32)
    chunk_mean = tl.sum(rounded_product(mean, counts[None, :]), 1) / tl.sum(counts, 0)
    apart = mean - chunk_mean[:, None]
    chunk_m2 = tl.sum(m2 + counts[None, :] * apart * apart, 1)
    at = (segment.to(tl.int64) * chunks + chunk) * channels + channel
    tl.store(partial_mean_ptr + at, chunk_mean, mask=valid)
    tl.store(partial_m2_ptr + at, chunk_m2, mask=valid)


@triton.jit
def combine_statistics_kernel(
    x_ptr, x2_ptr, add_ptr, partial_mean_ptr, partial_m2_ptr, mean_ptr, rstd_ptr,
    C1, C2, positions, length, group_channels, num_groups, segments_per_sample, segments_per_unit,
    chunks, chunk_length, eps,
    HAS_X2: tl.constexpr, HAS_ADD: tl.constexpr, CHANNELS_LAST: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """mean and rstd of one group of one unit from its channels' and chunks' (Chan et al. 1983)."""
    channels = C1 + C2
    unit, group = tl.program_id(0) // num_groups, tl.program_id(0) % num_groups
    entries = segments_per_unit * chunks * group_channels
    base = unit.to(tl.int64) * segments_per_unit * chunks * channels + group * group_channels
    total = tl.zeros([BLOCK], tl.float64)
    for start in range(0, entries, BLOCK):
        entry = start + tl.arange(0, BLOCK)
        row = entry // group_channels
        at = base + row.to(tl.int64) * channels + entry % group_channels
        counts = tl.minimum(chunk_length, length - row % chunks * chunk_length).to(tl.float64)
        total += counts * tl.load(partial_mean_ptr + at, mask=entry < entries, other=0.0)
    count = tl.cast(group_channels, tl.float32) * length * segments_per_unit
    mean = tl.sum(total, 0) / count

    total = tl.zeros([BLOCK], tl.float64)
    for start in range(0, entries, BLOCK):
        entry = start + tl.arange(0, BLOCK)
        row = entry // group_channels
        at = base + row.to(tl.int64) * channels + entry % group_channels
        counts = tl.minimum(chunk_length, length - row % chunks * chunk_length).to(tl.float64)
        apart = tl.load(partial_mean_ptr + at, mask=entry < entries, other=0.0) - mean
        m2 = tl.load(partial_m2_ptr + at, mask=entry < entries, other=0.0)
        total += tl.where(entry < entries, m2 + counts * apart * apart, 0.0)
    variance = tl.sum(total, 0) / count
    one = tl.arange(0, 1)
    pivot = _pivot(
        x_ptr, x2_ptr, add_ptr, unit, group * group_channels + one, one == 0, C1, C2, positions, length,
        segments_per_sample, segments_per_unit, HAS_X2, HAS_ADD, CHANNELS_LAST,
    )  # fmt: skip
    tl.store(mean_ptr + tl.program_id(0) + one, (pivot + mean).to(tl.float32))
    tl.store(rstd_ptr + tl.program_id(0), _rstd(variance, eps, True).to(tl.float32))


@triton.jit
def apply_kernel(
    x_ptr, x2_ptr, weight_ptr, bias_ptr, scale_ptr, shift_ptr, add_ptr, y_ptr, mean_ptr, rstd_ptr,
    C1, C2, positions, length, group_channels, num_groups,
    segments_per_sample, segments_per_unit, segments_per_scale, segments_per_shift, chunks, tiles,
    HAS_X2: tl.constexpr, HAS_WEIGHT: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_SCALE: tl.constexpr,
    HAS_SHIFT: tl.constexpr, HAS_ADD: tl.constexpr, SILU: tl.constexpr, CHANNELS_LAST: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_R: tl.constexpr,
):  # fmt: skip
    """y of one chunk; the first programs take the last chunks, which the statistics pass left in L2."""
    PRECISE: tl.constexpr = x_ptr.dtype.element_ty == tl.float32
    channels = C1 + C2
    program = tl.num_programs(0) - 1 - tl.program_id(0)
    segment, chunk, slab = _chunk_of(program, channels, chunks, BLOCK_C, CHANNELS_LAST)
    sample = (segment // segments_per_sample).to(tl.int64)
    first = chunk.to(tl.int64) * (tiles * BLOCK_R)
    start = (segment % segments_per_sample).to(tl.int64) * length + first
    here = tl.minimum(length - first, tiles * BLOCK_R).to(tl.int32)
    origin = (slab * BLOCK_C).to(tl.int64)
    local, lane = tl.arange(0, BLOCK_C), tl.arange(0, BLOCK_R)
    channel = slab * BLOCK_C + local
    valid = channel < channels
    at = (segment // segments_per_unit).to(tl.int64) * num_groups + channel // group_channels
    mean = tl.load(mean_ptr + at, mask=valid, other=0.0)
    rstd = widen(tl.load(rstd_ptr + at, mask=valid, other=0.0), PRECISE)
    weight, bias, gain, shift = _coefficients(
        weight_ptr, bias_ptr, scale_ptr, shift_ptr, channel, valid,
        segment // segments_per_scale, segment // segments_per_shift, channels,
        HAS_WEIGHT, HAS_BIAS, HAS_SCALE, HAS_SHIFT, PRECISE,
    )  # fmt: skip
    slope, offset = as_column(rstd * weight * gain), as_column(bias * gain + shift)
    center = (mean - per_channel(add_ptr, sample * channels + channel, valid, HAS_ADD, 0.0))[:, None]
    for i in tl.range(0, tiles, num_stages=STAGES):
        r = i * BLOCK_R + lane
        mask = valid[:, None] & (r < here)[None, :]
        x = _load(x_ptr, x2_ptr, sample, origin, start, local, r, mask, C1, C2, positions, HAS_X2, CHANNELS_LAST)
        y = activate((x - center) * slope + offset, SILU, PRECISE)
        _store(y_ptr, y_ptr, y, sample, origin, start, local, r, mask, channels, 0, positions, False, CHANNELS_LAST)


@triton.jit
def backward_sums_kernel(
    dy_ptr, x_ptr, x2_ptr, weight_ptr, bias_ptr, mean_ptr, rstd_ptr, scale_ptr, shift_ptr, add_ptr,
    partial_dp_ptr, partial_dp_xhat_ptr,
    C1, C2, positions, length, group_channels, num_groups,
    segments_per_sample, segments_per_unit, segments_per_scale, segments_per_shift, chunks, tiles,
    HAS_X2: tl.constexpr, HAS_WEIGHT: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_SCALE: tl.constexpr,
    HAS_SHIFT: tl.constexpr, HAS_ADD: tl.constexpr, SILU: tl.constexpr, CHANNELS_LAST: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_R: tl.constexpr,
):  # fmt: skip
    """Sums of dp and dp*xhat of each channel of one chunk, p the pre-activation."""
    PRECISE: tl.constexpr = x_ptr.dtype.element_ty == tl.float32
    channels = C1 + C2
    segment, chunk, slab = _chunk_of(tl.program_id(0), channels, chunks, BLOCK_C, CHANNELS_LAST)
    sample = (segment // segments_per_sample).to(tl.int64)
    first = chunk.to(tl.int64) * (tiles * BLOCK_R)
    start = (segment % segments_per_sample).to(tl.int64) * length + first
    here = tl.minimum(length - first, tiles * BLOCK_R).to(tl.int32)
    origin = (slab * BLOCK_C).to(tl.int64)
    local, lane = tl.arange(0, BLOCK_C), tl.arange(0, BLOCK_R)
    channel = slab * BLOCK_C + local
    valid = channel < channels
    at = (segment // segments_per_unit).to(tl.int64) * num_groups + channel // group_channels
    mean = tl.load(mean_ptr + at, mask=valid, other=0.0)
    rstd = widen(tl.load(rstd_ptr + at, mask=valid, other=0.0), PRECISE)
    weight, bias, gain, shift = _coefficients(
        weight_ptr, bias_ptr, scale_ptr, shift_ptr, channel, valid,
        segment // segments_per_scale, segment // segments_per_shift, channels,
        HAS_WEIGHT, HAS_BIAS, HAS_SCALE, HAS_SHIFT, PRECISE,
    )  # fmt: skip
    slope, offset = as_column(rstd * weight * gain), as_column(bias * gain + shift)
    center = (mean - per_channel(add_ptr, sample * channels + channel, valid, HAS_ADD, 0.0))[:, None]
    sum_dp = tl.zeros([BLOCK_C, BLOCK_R], tl.float32)
    sum_dp_x = tl.zeros([BLOCK_C, BLOCK_R], tl.float32)
    for i in tl.range(0, tiles, num_stages=STAGES):
        r = i * BLOCK_R + lane
        mask = valid[:, None] & (r < here)[None, :]
        x = _load(x_ptr, x2_ptr, sample, origin, start, local, r, mask, C1, C2, positions, HAS_X2, CHANNELS_LAST)
        dp = _load(dy_ptr, dy_ptr, sample, origin, start, local, r, mask, channels, 0, positions, False, CHANNELS_LAST)
        x = x - center
        dp = activate_backward(dp, x * slope + offset, SILU, PRECISE)
        sum_dp += dp
        sum_dp_x += dp * x
    at = (segment.to(tl.int64) * chunks + chunk) * channels + channel
    tl.store(partial_dp_ptr + at, _sum(sum_dp, PRECISE).to(tl.float32), mask=valid)
    tl.store(partial_dp_xhat_ptr + at, (_sum(sum_dp_x, PRECISE) * rstd).to(tl.float32), mask=valid)


@triton.jit
def combine_sums_kernel(
    partial_dp_ptr, partial_dp_xhat_ptr, weight_ptr, bias_ptr, scale_ptr, shift_ptr,
    mean_g_ptr, mean_g_xhat_ptr, dweight_ptr, dbias_ptr, dscale_ptr, dshift_ptr,
    channels, length, group_channels, num_groups, segments_per_unit, segments_per_scale, segments_per_shift, chunks,
    HAS_WEIGHT: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_SCALE: tl.constexpr, HAS_SHIFT: tl.constexpr,
    BLOCK_D: tl.constexpr, BLOCK_CHUNKS: tl.constexpr,
):  # fmt: skip
    """Per-channel gradients of each segment, and the two group means that dx needs."""
    unit, group = tl.program_id(0) // num_groups, tl.program_id(0) % num_groups
    sum_g, sum_g_xhat = tl.zeros([BLOCK_D], tl.float64), tl.zeros([BLOCK_D], tl.float64)
    for d in range(0, group_channels, BLOCK_D):
        local = d + tl.arange(0, BLOCK_D)
        valid = local < group_channels
        channel = group * group_channels + local
        for q in range(0, segments_per_unit):
            segment = unit * segments_per_unit + q
            dp = tl.zeros([BLOCK_CHUNKS, BLOCK_D], tl.float32)
            dp_xhat = tl.zeros([BLOCK_CHUNKS, BLOCK_D], tl.float32)
            for k in range(0, chunks, BLOCK_CHUNKS):
                chunk = k + tl.arange(0, BLOCK_CHUNKS)
                at = (segment.to(tl.int64) * chunks + chunk)[:, None] * channels + channel[None, :]
                mask = (chunk < chunks)[:, None] & valid[None, :]
                dp += tl.load(partial_dp_ptr + at, mask=mask, other=0.0)
                dp_xhat += tl.load(partial_dp_xhat_ptr + at, mask=mask, other=0.0)
            weight, bias, gain, _ = _coefficients(
                weight_ptr, bias_ptr, scale_ptr, shift_ptr, channel, valid,
                segment // segments_per_scale, segment // segments_per_shift, channels,
                HAS_WEIGHT, HAS_BIAS, HAS_SCALE, HAS_SHIFT, True,
            )  # fmt: skip
            segment_dp, segment_dp_xhat = tl.sum(dp, 0).to(tl.float64), tl.sum(dp_xhat, 0).to(tl.float64)
            _store_channel_gradients(
                dweight_ptr, dbias_ptr, dscale_ptr, dshift_ptr, segment_dp, segment_dp_xhat, weight, bias, gain,
                segment.to(tl.int64) * channels + channel, valid, HAS_WEIGHT, HAS_BIAS, HAS_SCALE, HAS_SHIFT,
            )  # fmt: skip
            sum_g += weight * gain * segment_dp
            sum_g_xhat += weight * gain * segment_dp_xhat
    count = tl.cast(group_channels, tl.float32) * length * segments_per_unit
    tl.store(mean_g_ptr + tl.program_id(0), (tl.sum(sum_g, 0) / count).to(tl.float32))
    tl.store(mean_g_xhat_ptr + tl.program_id(0), (tl.sum(sum_g_xhat, 0) / count).to(tl.float32))


@triton.jit
def backward_apply_kernel(
    dy_ptr, x_ptr, x2_ptr, weight_ptr, bias_ptr, mean_ptr, rstd_ptr, scale_ptr, shift_ptr, add_ptr,
    mean_g_ptr, mean_g_xhat_ptr, dx_ptr, dx2_ptr, partial_dadd_ptr,
    C1, C2, positions, length, group_channels, num_groups,
    segments_per_sample, segments_per_unit, segments_per_scale, segments_per_shift, chunks, tiles,
    HAS_X2: tl.constexpr, HAS_WEIGHT: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_SCALE: tl.constexpr,
    HAS_SHIFT: tl.constexpr, HAS_ADD: tl.constexpr, SILU: tl.constexpr, CHANNELS_LAST: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_R: tl.constexpr,
):  # fmt: skip
    """dx of one chunk, last chunks first, and its channels' sums where `add` wants them."""
    PRECISE: tl.constexpr = x_ptr.dtype.element_ty == tl.float32
    channels = C1 + C2
    program = tl.num_programs(0) - 1 - tl.program_id(0)
    segment, chunk, slab = _chunk_of(program, channels, chunks, BLOCK_C, CHANNELS_LAST)
    sample = (segment // segments_per_sample).to(tl.int64)
    first = chunk.to(tl.int64) * (tiles * BLOCK_R)
    start = (segment % segments_per_sample).to(tl.int64) * length + first
    here = tl.minimum(length - first, tiles * BLOCK_R).to(tl.int32)
    origin = (slab * BLOCK_C).to(tl.int64)
    local, lane = tl.arange(0, BLOCK_C), tl.arange(0, BLOCK_R)
    channel = slab * BLOCK_C + local
    valid = channel < channels
    at = (segment // segments_per_unit).to(tl.int64) * num_groups + channel // group_channels
    mean = tl.load(mean_ptr + at, mask=valid, other=0.0)
    rstd = widen(tl.load(rstd_ptr + at, mask=valid, other=0.0), PRECISE)
    mean_g = tl.load(mean_g_ptr + at, mask=valid, other=0.0)
    mean_g_xhat = tl.load(mean_g_xhat_ptr + at, mask=valid, other=0.0)
    weight, bias, gain, shift = _coefficients(
        weight_ptr, bias_ptr, scale_ptr, shift_ptr, channel, valid,
        segment // segments_per_scale, segment // segments_per_shift, channels,
        HAS_WEIGHT, HAS_BIAS, HAS_SCALE, HAS_SHIFT, PRECISE,
    )  # fmt: skip
    slope, offset = as_column(rstd * weight * gain), as_column(bias * gain + shift)
    center = (mean - per_channel(add_ptr, sample * channels + channel, valid, HAS_ADD, 0.0))[:, None]
    along, level = as_column(rstd * rstd * mean_g_xhat), as_column(rstd * mean_g)
    sum_dx = tl.zeros([BLOCK_C, BLOCK_R], tl.float32)
    for i in tl.range(0, tiles, num_stages=STAGES):
        r = i * BLOCK_R + lane
        mask = valid[:, None] & (r < here)[None, :]
        x = _load(x_ptr, x2_ptr, sample, origin, start, local, r, mask, C1, C2, positions, HAS_X2, CHANNELS_LAST)
        dp = _load(dy_ptr, dy_ptr, sample, origin, start, local, r, mask, channels, 0, positions, False, CHANNELS_LAST)
        x = x - center
        dp = activate_backward(dp, x * slope + offset, SILU, PRECISE)
        dx = dp * slope - x * along - level
        if HAS_ADD:
            sum_dx += tl.where(mask, dx, 0.0)
        _store(dx_ptr, dx2_ptr, dx, sample, origin, start, local, r, mask, C1, C2, positions, HAS_X2, CHANNELS_LAST)
    if HAS_ADD:
        at = (segment.to(tl.int64) * chunks + chunk) * channels + channel
        tl.store(partial_dadd_ptr + at, tl.sum(sum_dx, 1), mask=valid)
