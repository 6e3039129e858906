"""Triton kernels: a program normalises tiles [channels, positions]; all channels in registers where they fit."""

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


@triton.jit
def _load(
    x_ptr, sample, c, start, local, r, here, channels, positions, CHANNELS_LAST: tl.constexpr,
):  # fmt: skip
    """Channels c + local at positions start + r, as float32, 0 outside."""
    mask = (c + local < channels)[:, None] & (r < here)[None, :]
    at = tile_offsets(local, r, channels, positions, CHANNELS_LAST)
    origin = element_offset(sample, tl.cast(c, tl.int64), start, channels, positions, CHANNELS_LAST)
    return tl.load(x_ptr + origin + at, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def _store(
    y_ptr, y, sample, c, start, local, r, here, channels, positions, CHANNELS_LAST: tl.constexpr,
):  # fmt: skip
    mask = (c + local < channels)[:, None] & (r < here)[None, :]
    at = tile_offsets(local, r, channels, positions, CHANNELS_LAST)
    origin = element_offset(sample, tl.cast(c, tl.int64), start, channels, positions, CHANNELS_LAST)
    tl.store(y_ptr + origin + at, y.to(y_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _coefficients(
    weight_ptr, scale_ptr, shift_ptr, channel, channels, scale_row, shift_row,
    HAS_WEIGHT: tl.constexpr, HAS_SCALE: tl.constexpr, HAS_SHIFT: tl.constexpr, PRECISE: tl.constexpr,
):  # fmt: skip
    """weight, 1 + scale and shift of each channel."""
    valid = channel < channels
    weight = widen(per_channel(weight_ptr, channel, valid, HAS_WEIGHT, 1.0), PRECISE)
    scale = widen(per_channel(scale_ptr, scale_row.to(tl.int64) * channels + channel, valid, HAS_SCALE, 0.0), PRECISE)
    shift = per_channel(shift_ptr, shift_row.to(tl.int64) * channels + channel, valid, HAS_SHIFT, 0.0)
    return weight, 1.0 + scale, shift


@triton.jit
def _rstd(total, channels, eps, PRECISE: tl.constexpr):
    mean = widen(total, PRECISE) / tl.cast(channels, tl.float32)
    return (1.0 / tl.sqrt(mean + tl.cast(eps, tl.float32))).to(tl.float32)


@triton.jit
def forward_kernel(
    x_ptr, weight_ptr, scale_ptr, shift_ptr, y_ptr, rstd_ptr,
    channels, positions, length, segments_per_sample, segments_per_scale, segments_per_shift, chunks, eps,
    HAS_WEIGHT: tl.constexpr, HAS_SCALE: tl.constexpr, HAS_SHIFT: tl.constexpr, SILU: tl.constexpr,
    CHANNELS_LAST: tl.constexpr, ONE_READ: tl.constexpr, FAR: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_R: tl.constexpr,
):  # fmt: skip
    PRECISE: tl.constexpr = x_ptr.dtype.element_ty == tl.float32
    segment, chunk = tl.program_id(0) // chunks, tl.program_id(0) % chunks
    sample = (segment // segments_per_sample).to(tl.int64)
    first = chunk.to(tl.int64) * BLOCK_R
    start = (segment % segments_per_sample).to(tl.int64) * length + first
    here = tl.minimum(length - first, BLOCK_R).to(tl.int32)
    local, r = tl.arange(0, BLOCK_C), tl.arange(0, BLOCK_R)
    if FAR:  # offsets within a tile pass 2^31
        local = local.to(tl.int64)
    total = tl.zeros([BLOCK_R], tl.float32)
    if ONE_READ:
        x = _load(x_ptr, sample, 0, start, local, r, here, channels, positions, CHANNELS_LAST)
        total = tl.sum(rounded_product(x, x), 0)
    else:
        for c in range(0, channels, BLOCK_C):
            x = _load(x_ptr, sample, c, start, local, r, here, channels, positions, CHANNELS_LAST)
            total += tl.sum(rounded_product(x, x), 0)
    rstd = _rstd(total, channels, eps, PRECISE)
    tl.store(rstd_ptr + sample * positions + start + r, rstd, mask=r < here)
    for c in range(0, channels, BLOCK_C):
        if not ONE_READ:
            x = _load(x_ptr, sample, c, start, local, r, here, channels, positions, CHANNELS_LAST)
        weight, gain, shift = _coefficients(
            weight_ptr, scale_ptr, shift_ptr, c + local, channels,
            segment // segments_per_scale, segment // segments_per_shift, HAS_WEIGHT, HAS_SCALE, HAS_SHIFT, PRECISE,
        )  # fmt: skip
        y = activate(x * rstd[None, :] * as_column(weight * gain) + as_column(shift), SILU, PRECISE)
        _store(y_ptr, y, sample, c, start, local, r, here, channels, positions, CHANNELS_LAST)


@triton.jit
def backward_kernel(
    dy_ptr, x_ptr, weight_ptr, rstd_ptr, scale_ptr, shift_ptr, dx_ptr, partial_dp_ptr, partial_dp_xhat_ptr,
    channels, positions, length, segments_per_sample, segments_per_scale, segments_per_shift, chunks, tiles,
    HAS_WEIGHT: tl.constexpr, HAS_SCALE: tl.constexpr, HAS_SHIFT: tl.constexpr, SILU: tl.constexpr,
    CHANNELS_LAST: tl.constexpr, ONE_READ: tl.constexpr, FAR: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_R: tl.constexpr,
):  # fmt: skip
    """dx, and each channel's sums of dp and dp*xhat over the program's positions, p the pre-activation."""
    PRECISE: tl.constexpr = x_ptr.dtype.element_ty == tl.float32
    segment, chunk = tl.program_id(0) // chunks, tl.program_id(0) % chunks
    sample = (segment // segments_per_sample).to(tl.int64)
    scale_row, shift_row = segment // segments_per_scale, segment // segments_per_shift
    local, lane = tl.arange(0, BLOCK_C), tl.arange(0, BLOCK_R)
    if FAR:  # offsets within a tile pass 2^31
        local = local.to(tl.int64)
    row = (segment.to(tl.int64) * chunks + chunk) * channels
    sum_dp = tl.zeros([BLOCK_C], tl.float32)
    sum_dp_xhat = tl.zeros([BLOCK_C], tl.float32)
    for i in range(0, tiles):
        first = (chunk.to(tl.int64) * tiles + i) * BLOCK_R
        start = (segment % segments_per_sample).to(tl.int64) * length + first
        here = tl.minimum(tl.maximum(length - first, 0), BLOCK_R).to(tl.int32)
        rstd = tl.load(rstd_ptr + sample * positions + start + lane, mask=lane < here, other=0.0)
        total = tl.zeros([BLOCK_R], tl.float32)
        for c in range(0, channels, BLOCK_C):
            x = _load(x_ptr, sample, c, start, local, lane, here, channels, positions, CHANNELS_LAST)
            dp = _load(dy_ptr, sample, c, start, local, lane, here, channels, positions, CHANNELS_LAST)
            weight, gain, shift = _coefficients(
                weight_ptr, scale_ptr, shift_ptr, c + local, channels, scale_row, shift_row,
                HAS_WEIGHT, HAS_SCALE, HAS_SHIFT, PRECISE,
            )  # fmt: skip
            slope = as_column(weight * gain)
            xhat = x * rstd[None, :]
            dp = activate_backward(dp, xhat * slope + as_column(shift), SILU, PRECISE)
            if ONE_READ:
                sum_dp += tl.sum(dp, 1)
                sum_dp_xhat += tl.sum(rounded_product(dp, xhat), 1)
            else:
                at = row + c + local
                tl.store(partial_dp_ptr + at, tl.sum(dp, 1), mask=c + local < channels)
                tl.store(partial_dp_xhat_ptr + at, tl.sum(rounded_product(dp, xhat), 1), mask=c + local < channels)
            total += tl.sum(rounded_product(dp * slope, xhat), 0)
            if ONE_READ:
                mean = total / tl.cast(channels, tl.float32)
                dx = rstd[None, :] * (dp * slope - xhat * mean[None, :])
                _store(dx_ptr, dx, sample, c, start, local, lane, here, channels, positions, CHANNELS_LAST)
        if not ONE_READ:
            mean = total / tl.cast(channels, tl.float32)
            for c in range(0, channels, BLOCK_C):
                x = _load(x_ptr, sample, c, start, local, lane, here, channels, positions, CHANNELS_LAST)
                dp = _load(dy_ptr, sample, c, start, local, lane, here, channels, positions, CHANNELS_LAST)
                weight, gain, shift = _coefficients(
                    weight_ptr, scale_ptr, shift_ptr, c + local, channels, scale_row, shift_row,
                    HAS_WEIGHT, HAS_SCALE, HAS_SHIFT, PRECISE,
                )  # fmt: skip
                slope = as_column(weight * gain)
                xhat = x * rstd[None, :]
                dp = activate_backward(dp, xhat * slope + as_column(shift), SILU, PRECISE)
                dx = rstd[None, :] * (dp * slope - xhat * mean[None, :])
                _store(dx_ptr, dx, sample, c, start, local, lane, here, channels, positions, CHANNELS_LAST)
    if ONE_READ:
        tl.store(partial_dp_ptr + row + local, sum_dp, mask=local < channels)
        tl.store(partial_dp_xhat_ptr + row + local, sum_dp_xhat, mask=local < channels)
