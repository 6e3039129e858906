"""Counter-based normals in torch: the definition that every kernel reproduces bit for bit.

Philox4x32-10 (Salmon, Moraes, Dror and Shaw 2011, "Parallel random numbers: as easy as 1, 2, 3") in int64 arithmetic,
then Box-Muller with fixed fp32 polynomials, multiply and add rounded apart. Nothing here depends on the device.
"""

from __future__ import annotations

import torch
from torch import Tensor

ROUNDS = 10
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
KEY_INCREMENTS = (0x9E3779B9, 0xBB67AE85)
MASK = 0xFFFFFFFF

# -2 log(m) = f * LOG(f), f = m - 1 in [-1/3, 1/3]: relative error 2^-25. Lowest power first, each exact in fp32.
LOG = (
    -2.0,
    0.9999986290931702,
    -0.6666633486747742,
    0.5001605749130249,
    -0.40023887157440186,
    0.328255832195282,
    -0.27975308895111084,
    0.30806395411491394,
    -0.28112196922302246,
)
# sin(x) = x + x^3 SIN(x^2) and cos(x) = 1 - x^2/2 + x^4 COS(x^2) on [-pi/4, pi/4]: 2^-28 and 2^-33.
SIN = (-0.16666655242443085, 0.008332177996635437, -0.0001951729936990887)
COS = (0.04166664555668831, -0.001388736767694354, 2.4438451873720624e-05)
MINUS_2_LN_2 = -1.3862943649291992
TWO_PI_2_32 = 1.462918119976564e-09  # 2 pi / 2^32
THIRD_BITS = 0x3F2AAAAB  # 2/3 in fp32: mantissas are taken in [2/3, 4/3)
# The noise that all frames of a video share has a stream of its own: the same word with its top bit turned.
SHARED_STREAM = 1 << 31


def philox4x32(counter: tuple[Tensor, ...], key: tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
    """Ten rounds of Philox on counters (c0, c1, c2, c3) and key (k0, k1), all int64 tensors of 32-bit values."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(ROUNDS):
        # An int64 product wraps modulo 2^64, which keeps all 64 bits of it.
        product0, product1 = c0 * MULTIPLIERS[0], c2 * MULTIPLIERS[1]
        c0 = ((product1 >> 32) & MASK) ^ c1 ^ k0
        c2 = ((product0 >> 32) & MASK) ^ c3 ^ k1
        c1, c3 = product1 & MASK, product0 & MASK
        k0, k1 = (k0 + KEY_INCREMENTS[0]) & MASK, (k1 + KEY_INCREMENTS[1]) & MASK
    return c0, c1, c2, c3


def _horner(x: Tensor, coefficients: tuple[float, ...]) -> Tensor:
    value = x * coefficients[-1] + coefficients[-2]
    for coefficient in coefficients[-3::-1]:
        value = value * x + coefficient
    return value


def _radius(word: Tensor) -> Tensor:
    """sqrt(-2 log u), u = word / 2^32 + 2^-33 in (0, 1]."""
    u = word.to(torch.float32) * 2.0**-32 + 2.0**-33
    bits = u.view(torch.int32)
    exponent = (bits - THIRD_BITS) >> 23
    f = (bits - (exponent << 23)).view(torch.float32) - 1.0
    square = f * _horner(f, LOG) + exponent.to(torch.float32) * MINUS_2_LN_2
    return square.double().sqrt().float()


def _angle(word: Tensor) -> tuple[Tensor, Tensor]:
    """cos and sin of 2 pi word / 2^32: the quadrant by integers, the rest by polynomials."""
    quadrant = (word + (1 << 29)) >> 30
    x = (word - (quadrant << 30)).to(torch.float32) * TWO_PI_2_32
    z = x * x
    sin = x + (x * z) * _horner(z, SIN)
    cos = (1.0 - z * 0.5) + (z * z) * _horner(z, COS)
    odd = (quadrant & 1).bool()
    cosine, sine = torch.where(odd, sin, cos), torch.where(odd, cos, sin)
    cosine = torch.where(((quadrant + 1) & 2).bool(), -cosine, cosine)
    return cosine, torch.where((quadrant & 2).bool(), -sine, sine)


def box_muller(words: tuple[Tensor, ...]) -> Tensor:
    """Four standard normals (..., 4) fp32 of four 32-bit words: (w0, w1) -> (r cos, r sin), (w2, w3) likewise."""
    pairs = []
    for radius_word, angle_word in (words[:2], words[2:]):
        radius = _radius(radius_word)
        cosine, sine = _angle(angle_word)
        pairs += [radius * cosine, radius * sine]
    return torch.stack(pairs, dim=-1)


def normals(batch: int, per_sample: int, seed: Tensor, sample_offset: Tensor | int, stream: Tensor | int) -> Tensor:
    """Standard normals (batch, per_sample) fp32 on the device of `seed` (0-d int64).

    Element e of sample b is word e % 4 of counter (e // 4 low, e // 4 high, sample_offset + b, stream), the key is
    the seed; every counter word is taken modulo 2^32.
    """
    quads = (per_sample + 3) // 4
    quad = torch.arange(quads, dtype=torch.int64, device=seed.device)
    sample = (torch.arange(batch, dtype=torch.int64, device=seed.device) + sample_offset) & MASK
    zero = torch.zeros((batch, quads), dtype=torch.int64, device=seed.device)
    counter = (zero + (quad & MASK), zero + (quad >> 32), zero + sample[:, None], zero + (stream & MASK))
    words = philox4x32(counter, (seed & MASK, (seed >> 32) & MASK))
    return box_muller(words).reshape(batch, quads * 4)[:, :per_sample]
