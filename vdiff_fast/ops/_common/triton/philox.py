"""The normals of vdiff_fast/_philox.py as Triton device functions. Launch with enable_fp_fusion=False.

Then multiply and add stay apart and the normals are bit-equal to the reference, here and in the interpreter.
"""

from __future__ import annotations

import triton
import triton.language as tl

from vdiff_fast import _philox

_ROUNDS = tl.constexpr(_philox.ROUNDS)
_LOG = tl.constexpr(_philox.LOG)
_SIN = tl.constexpr(_philox.SIN)
_COS = tl.constexpr(_philox.COS)
_MINUS_2_LN_2 = tl.constexpr(_philox.MINUS_2_LN_2)
_ANGLE = tl.constexpr(_philox.TWO_PI_2_32)
_TWO_THIRDS = tl.constexpr(_philox.THIRD_BITS)
_SHARED_STREAM = tl.constexpr(_philox.SHARED_STREAM)


@triton.jit
def counter_word(ptr):
    """sample_offset or stream; an absent one is 0."""
    if ptr is None:
        word = tl.full((), 0, tl.int64)
    else:
        word = tl.load(ptr)
    return word


@triton.jit
def _log_polynomial(x):
    value = x * _LOG[8] + _LOG[7]
    value = value * x + _LOG[6]
    value = value * x + _LOG[5]
    value = value * x + _LOG[4]
    value = value * x + _LOG[3]
    value = value * x + _LOG[2]
    value = value * x + _LOG[1]
    return value * x + _LOG[0]


@triton.jit
def _radius(word):
    u = word.to(tl.float32) * 2.3283064365386963e-10 + 1.1641532182693481e-10
    bits = u.to(tl.int32, bitcast=True)
    exponent = (bits - _TWO_THIRDS) >> 23
    f = (bits - (exponent << 23)).to(tl.float32, bitcast=True) - 1.0
    return tl.sqrt_rn(f * _log_polynomial(f) + exponent.to(tl.float32) * _MINUS_2_LN_2)


@triton.jit
def _polar(radius, word):
    quadrant = (word + 0x20000000) >> 30
    x = (word - (quadrant << 30)).to(tl.int32, bitcast=True).to(tl.float32) * _ANGLE
    z = x * x
    sine = x + (x * z) * ((z * _SIN[2] + _SIN[1]) * z + _SIN[0])
    cosine = (1.0 - z * 0.5) + (z * z) * ((z * _COS[2] + _COS[1]) * z + _COS[0])
    odd = (quadrant & 1) != 0
    first = tl.where(odd, sine, cosine)
    second = tl.where(odd, cosine, sine)
    first = tl.where(((quadrant + 1) & 2) != 0, -first, first)
    second = tl.where((quadrant & 2) != 0, -second, second)
    return radius * first, radius * second


@triton.jit
def normals(seed, sample, stream, quad):
    """The four normals, elements 4 quad ... 4 quad + 3 of a sample; int64 scalars, and quad an int64 tensor."""
    low = (quad & 0xFFFFFFFF).to(tl.uint32)
    high = ((quad >> 32) & 0xFFFFFFFF).to(tl.uint32)
    zero = low & 0
    third = zero + (sample & 0xFFFFFFFF).to(tl.uint32)
    fourth = zero + (stream & 0xFFFFFFFF).to(tl.uint32)
    w0, w1, w2, w3 = tl.philox(seed, low, high, third, fourth, _ROUNDS)
    n0, n1 = _polar(_radius(w0), w1)
    n2, n3 = _polar(_radius(w2), w3)
    return n0, n1, n2, n3


@triton.jit
def _quad_normals(seed, sample, stream, quad):
    """The normals of the counters `quad`, four after four."""
    n0, n1, n2, n3 = normals(seed, sample, stream, quad)
    return tl.interleave(tl.interleave(n0, n2), tl.interleave(n1, n3))


@triton.jit
def flat_normals(seed, sample, stream, first, QUADS: tl.constexpr):
    """Normals of the elements 4 first ... 4 (first + QUADS) - 1, in their order."""
    return _quad_normals(seed, sample, stream, first + tl.arange(0, QUADS).to(tl.int64))


@triton.jit
def element_normals(seed, sample, stream, element):
    """One normal per element, each from a counter of its own call: four times the work of flat_normals."""
    n0, n1, n2, n3 = normals(seed, sample, stream, element // 4)
    word = element % 4
    return tl.where(word < 2, tl.where(word == 0, n0, n1), tl.where(word == 2, n2, n3))


@triton.jit
def frame_tile(channels, positions, frames, tile, MODE: tl.constexpr, QUADS: tl.constexpr):
    """A tile of a video's first frame: offsets in the sample, places in the order of e, and which elements exist.

    MODE is the tiling's (vdiff_fast/ops/_common/tiling.py); the offsets in frame f are f * (positions // frames) more.
    """
    frame = tl.cast(positions, tl.int64) // frames
    lane = tl.arange(0, 4 * QUADS).to(tl.int64)
    if MODE == 0:
        position = tile * (4 * QUADS) + lane
        channel = lane * 0
    elif MODE == 1:
        fours = channels // 4
        position = tile // fours * QUADS + lane // 4
        channel = tile % fours * 4 + lane % 4
    else:
        position = (tile * (4 * QUADS) + lane) % frame
        channel = (tile * (4 * QUADS) + lane) // frame
    inside = (position < frame) & (channel < channels)
    return channel * positions + position, position * channels + channel, inside


@triton.jit
def _fresh_normals(seed, sample, stream, first, element, channels, tile, MODE: tl.constexpr, QUADS: tl.constexpr):
    """Independent normals of a frame_tile in the frame that begins at element `first`."""
    if MODE == 2:
        n = element_normals(seed, sample, stream, first + element)
    else:
        quad = tl.arange(0, QUADS).to(tl.int64)
        if MODE == 0:
            quad += tile * QUADS
        else:
            quad = (tile // (channels // 4) * QUADS + quad) * (channels // 4) + tile % (channels // 4)
        n = _quad_normals(seed, sample, stream, first // 4 + quad)
    return n


@triton.jit
def shared_normals(
    seed, sample, stream, element, channels, tile, CORRELATION: tl.constexpr, MODE: tl.constexpr, QUADS: tl.constexpr
):
    """What a walk over the frames of a frame_tile begins with: the noise all of them share, or nothing."""
    if CORRELATION == 2:
        n = tl.zeros((4 * QUADS,), tl.float32)
    else:
        n = _fresh_normals(seed, sample, stream ^ _SHARED_STREAM, tile * 0, element, channels, tile, MODE, QUADS)
    return n


@triton.jit
def frame_normals(
    seed, sample, stream, frame, frame_positions, element, channels, tile, carried, shared, own,
    CORRELATION: tl.constexpr, MODE: tl.constexpr, QUADS: tl.constexpr,
):  # fmt: skip
    """Noise of a frame_tile in frame `frame`, correlated with what is carried; a progressive walk carries it on."""
    first = frame * frame_positions * channels
    n = _fresh_normals(seed, sample, stream, first, element, channels, tile, MODE, QUADS)
    z = tl.cast(shared, tl.float32) * carried + tl.cast(own, tl.float32) * n
    if CORRELATION == 2:
        z = tl.where(frame == 0, n, z)
    return z
