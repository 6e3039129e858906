"""Device functions of the norms over channels: offsets of a tile [channels, positions], vectors, SiLU."""

import triton
import triton.language as tl

from vdiff_fast.ops._common.triton.sums import rounded_product


@triton.jit
def element_offset(sample, channel, position, channels, positions, CHANNELS_LAST: tl.constexpr):
    """Offset of an element, in 64 bits."""
    if CHANNELS_LAST:
        offset = (sample * positions + position) * channels + channel
    else:
        offset = (sample * channels + channel) * positions + position
    return offset


@triton.jit
def tile_offsets(local, r, channels, positions, CHANNELS_LAST: tl.constexpr):
    """Offsets [local channel, local position] from a tile's origin; config.py keeps them below 2^31."""
    if CHANNELS_LAST:
        offsets = local[:, None] + (r * channels)[None, :]
    else:
        offsets = (local * positions)[:, None] + r[None, :]
    return offsets


@triton.jit
def per_channel(pointer, at, valid, PRESENT: tl.constexpr, DEFAULT: tl.constexpr):
    if PRESENT:
        value = tl.load(pointer + at, mask=valid, other=0.0).to(tl.float32)
    else:
        value = tl.full(at.shape, DEFAULT, tl.float32)
    return value


@triton.jit
def widen(value, PRECISE: tl.constexpr):
    """Numbers of one channel or group are float64 beside a float32 activation, so that they are rounded once."""
    if PRECISE:
        value = value.to(tl.float64)
    return value


@triton.jit
def as_column(value):
    """A [channel] vector as float32 beside a tile."""
    return value.to(tl.float32)[:, None]


@triton.jit
def divide(a, b, PRECISE: tl.constexpr):
    """a / b; correctly rounded for float32 tensors, whose tolerance the fast division would use up."""
    if PRECISE:
        quotient = tl.div_rn(a, b)
    else:
        quotient = a / b
    return quotient


@triton.jit
def activate(p, SILU: tl.constexpr, PRECISE: tl.constexpr):
    if SILU:
        p = divide(p, 1.0 + tl.exp(-p), PRECISE)
    return p


@triton.jit
def activate_backward(dy, p, SILU: tl.constexpr, PRECISE: tl.constexpr):
    if SILU:
        sigmoid = divide(tl.full(p.shape, 1.0, tl.float32), 1.0 + tl.exp(-p), PRECISE)
        dy = rounded_product(dy * sigmoid, 1.0 + p * (1.0 - sigmoid))  # summed over lanes by most callers
    return dy
