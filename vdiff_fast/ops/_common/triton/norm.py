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
def _sigmoid_root(p):
    """The square root of sigmoid(p): two approximate instructions, where a division takes three and a rescaling."""
    return tl.rsqrt(1.0 + tl.exp2(p * -1.4426950408889634))


@triton.jit
def activate(p, SILU: tl.constexpr, PRECISE: tl.constexpr):
    if SILU:
        if PRECISE:
            p = tl.div_rn(p, 1.0 + tl.exp(-p))
        else:
            root = _sigmoid_root(p)
            p = p * root * root
    return p


@triton.jit
def activate_backward(dy, p, SILU: tl.constexpr, PRECISE: tl.constexpr):
    if SILU:
        if PRECISE:
            sigmoid = tl.div_rn(tl.full(p.shape, 1.0, tl.float32), 1.0 + tl.exp(-p))
        else:
            root = _sigmoid_root(p)
            sigmoid = root * root
        dy = rounded_product(dy * sigmoid, 1.0 + p * (1.0 - sigmoid))
    return dy
