"""Triton kernels: a tile's loss and gradient with the noise in registers, then the fixed-order sum of the tiles."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from vdiff_fast import _library
from vdiff_fast.ops._common.targets import TARGETS
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
from vdiff_fast.ops.diffusion_loss.config import INPUTS
from vdiff_fast.ops.diffusion_loss.native import fake_backward, fake_loss

_SUM_BLOCK = 1024
TARGET_CODES = {name: code for code, name in enumerate(TARGETS)}


@triton.jit
def _mix(a, b, TARGET: tl.constexpr):
    """(p, q) of the target p x0 + q noise; TARGET is its place in `vdiff_fast.ops._common.targets.TARGETS`."""
    zero, one = a * 0.0, a * 0.0 + 1.0
    if TARGET == 0:
        p, q = zero, one
    elif TARGET == 1:
        p, q = -b, a
    elif TARGET == 2:
        p, q = one, zero
    elif TARGET == 3:
        p, q = -one, one
    else:
        tl.static_assert(False, "a target without its line in _mix")
    return p, q


@triton.jit
def _weight(a, b, gamma, TARGET: tl.constexpr, MIN_SNR: tl.constexpr):
    """Weight of the sample in float64, rounded once where it is used; NaN where the coefficients are."""
    a, b, gamma = a.to(tl.float64), b.to(tl.float64), tl.cast(gamma, tl.float64)
    weight = tl.where(a == a, 1.0, a)
    if MIN_SNR:
        snr = (a / b) * (a / b)
        clipped = tl.where(snr > gamma, gamma, snr)
        p, q = _mix(a, b, TARGET)
        determinant = a * q - b * p
        share = b / determinant
        limit = tl.where(b == 0.0, clipped, 1.0)
        weight = tl.where(determinant == 0.0, limit, clipped * (share * share))
    return weight


@triton.jit
def _elements(prediction_ptr, x0_ptr, gradient_ptr, at, n, p, q, scale, delta, mask, HUBER: tl.constexpr):
    """Losses of a tile's elements; writes their gradient where there is somewhere to write it."""
    wanted = q * n
    if x0_ptr is not None:
        wanted = wanted + p * tl.load(x0_ptr + at, mask=mask, other=0.0).to(tl.float32)
    d = tl.load(prediction_ptr + at, mask=mask, other=0.0).to(tl.float32) - wanted
    slope = d
    loss = d * d
    if HUBER:
        slope = tl.where(d > delta, delta, tl.where(d < -delta, -delta, d))
        size = tl.abs(d)
        inner = tl.where(size > delta, delta, size)
        loss = inner * (size - inner * 0.5)
    if gradient_ptr is not None:
        tl.store(gradient_ptr + at, (slope * scale).to(gradient_ptr.dtype.element_ty), mask=mask)
    return tl.where(mask, loss, 0.0)


@triton.jit
def loss_kernel(
    prediction_ptr, x0_ptr, noise_ptr, t_ptr, signal_ptr, scale_ptr, seed_ptr, offset_ptr, stream_ptr,
    upstream_ptr, sums_ptr, gradient_ptr, gamma, delta, samples, steps, channels, positions, tiles,
    frames, shared, own, UPSTREAM_STRIDE: tl.constexpr, TARGET: tl.constexpr, MIN_SNR: tl.constexpr,
    HUBER: tl.constexpr, OF: tl.constexpr, CORRELATION: tl.constexpr, MODE: tl.constexpr, QUADS: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0).to(tl.int64)
    sample, tile = program // tiles, program % tiles
    a, b = coefficients(t_ptr, signal_ptr, scale_ptr, steps, sample)
    p, q = _mix(a, b, TARGET)
    weight = _weight(a, b, gamma, TARGET, MIN_SNR)
    delta = tl.cast(delta, tl.float32)
    scale = p
    if gradient_ptr is not None:
        factor = weight * (1.0 if HUBER else 2.0) / (tl.cast(samples, tl.float64) * channels * positions)
        factor = factor * tl.load(upstream_ptr + sample * UPSTREAM_STRIDE).to(tl.float64)
        if OF == 1:
            factor = factor * -p.to(tl.float64)
        elif OF == 2:
            factor = factor * -q.to(tl.float64)
        scale = factor.to(tl.float32)
        gradient_ptr += sample * channels * positions
    base = sample * channels * positions
    prediction_ptr += base
    if x0_ptr is not None:
        x0_ptr += base
    at = tile * (4 * QUADS) + tl.arange(0, 4 * QUADS)
    inside = at < tl.cast(channels, tl.int64) * positions
    if seed_ptr is None:
        n = tl.zeros((4 * QUADS,), tl.float32)
        if noise_ptr is not None:
            n = tl.load(noise_ptr + base + at, mask=inside, other=0.0).to(tl.float32)
        loss = _elements(prediction_ptr, x0_ptr, gradient_ptr, at, n, p, q, scale, delta, inside, HUBER)
    else:
        seed, stream = tl.load(seed_ptr), counter_word(stream_ptr)
        index = counter_word(offset_ptr) + sample
        if CORRELATION != 0:
            length = positions // frames
            at, element, inside = frame_tile(channels, positions, frames, tile, MODE, QUADS)
            carried = shared_normals(seed, index, stream, element, channels, tile, CORRELATION, MODE, QUADS)
            loss = tl.zeros((4 * QUADS,), tl.float32)
            frame = tile * 0
            while frame < frames:
                n = frame_normals(seed, index, stream, frame, length, element, channels, tile, carried, shared, own,
                                  CORRELATION, MODE, QUADS)  # fmt: skip
                place = at + frame * length
                loss += _elements(prediction_ptr, x0_ptr, gradient_ptr, place, n, p, q, scale, delta, inside, HUBER)
                if CORRELATION == 2:
                    carried = n
                frame += 1
        elif MODE == 0:
            n = flat_normals(seed, index, stream, tile * QUADS, QUADS)
            loss = _elements(prediction_ptr, x0_ptr, gradient_ptr, at, n, p, q, scale, delta, inside, HUBER)
        elif MODE == 1:
            fours = channels // 4
            four, position = tile % fours, tile // fours * QUADS + tl.arange(0, QUADS)
            n0, n1, n2, n3 = normals(seed, index, stream, position * fours + four)
            at0, mask = position + four * 4 * positions, position < positions
            at1, at2, at3 = at0 + positions, at0 + 2 * positions, at0 + 3 * positions
            loss = _elements(prediction_ptr, x0_ptr, gradient_ptr, at0, n0, p, q, scale, delta, mask, HUBER)
            loss += _elements(prediction_ptr, x0_ptr, gradient_ptr, at1, n1, p, q, scale, delta, mask, HUBER)
            loss += _elements(prediction_ptr, x0_ptr, gradient_ptr, at2, n2, p, q, scale, delta, mask, HUBER)
            loss += _elements(prediction_ptr, x0_ptr, gradient_ptr, at3, n3, p, q, scale, delta, mask, HUBER)
        else:
            n = element_normals(seed, index, stream, at % positions * channels + at // positions)
            loss = _elements(prediction_ptr, x0_ptr, gradient_ptr, at, n, p, q, scale, delta, inside, HUBER)
    if sums_ptr is not None:
        tl.store(sums_ptr + program, weight * tl.sum(loss.to(tl.float64), axis=0))


@triton.jit
def sum_kernel(sums_ptr, loss_ptr, count, elements, BLOCK: tl.constexpr):
    """loss[program] = the sum of its `count` tiles, in one order, over `elements`."""
    program = tl.program_id(0).to(tl.int64)
    total = tl.zeros((BLOCK,), tl.float64)
    for first in range(0, count, BLOCK):
        at = first + tl.arange(0, BLOCK)
        total += tl.load(sums_ptr + program * count + at, mask=at < count, other=0.0)
    tl.store(loss_ptr + program, (tl.sum(total, axis=0) / tl.cast(elements, tl.float64)).to(tl.float32))


def _launch(
    prediction: Tensor, x0: Tensor | None, noise: Tensor | None, rest: tuple[Any, ...], mean: bool, of: str,
    upstream: Tensor | None, sums: bool, gradient: Tensor | None,
) -> tuple[Tensor | None, int]:  # fmt: skip
    """The tiles' weighted sums, and how many a sample has; `rest` is the schema from t on."""
    (
        t,
        signal,
        noise_scale,
        seed,
        sample_offset,
        stream,
        target,
        weighting,
        gamma,
        kind,
        delta,
        frames,
        shared,
        own,
        progressive,
    ) = rest
    if target == "x0":
        noise = seed = sample_offset = stream = None
    tiling = Tiling.of(prediction, seed is not None, frames, progressive)
    batch = prediction.shape[0]
    partial = prediction.new_empty((batch * tiling.tiles,), dtype=torch.float64) if sums else None
    loss_kernel[(batch * tiling.tiles,)](
        prediction, x0, noise, t, signal, noise_scale, seed, sample_offset, stream, upstream, partial, gradient,
        gamma, delta, batch if mean else 1, signal.numel(), tiling.channels, tiling.positions, tiling.tiles,
        frames, shared, own,
        UPSTREAM_STRIDE=0 if mean else 1, TARGET=TARGET_CODES[target], MIN_SNR=weighting == "min_snr",
        HUBER=kind == "huber", OF=INPUTS.index(of), **tiling.constants,
    )  # fmt: skip
    return partial, tiling.tiles


def _launch_loss(prediction: Tensor, x0: Tensor | None, noise: Tensor | None, *rest: Any) -> Tensor:
    mean = rest[-1]
    loss = fake_loss(prediction, *rest)
    if prediction.numel() == 0:
        return loss.fill_(float("nan"))
    sums, tiles = _launch(prediction, x0, noise, rest[:-1], mean, "prediction", None, True, None)
    programs = 1 if mean else prediction.shape[0]
    count, elements = prediction.shape[0] * tiles // programs, prediction.numel() // programs
    sum_kernel[(programs,)](sums, loss, count, elements, BLOCK=_SUM_BLOCK)
    return loss


def _launch_backward(
    upstream: Tensor, prediction: Tensor, x0: Tensor | None, noise: Tensor | None, *rest: Any
) -> Tensor:
    gradient = torch.empty_like(prediction)
    if prediction.numel():
        _launch(prediction, x0, noise, rest[:-1], upstream.dim() == 0, rest[-1], upstream, False, gradient)
    return gradient


_SCHEMA = (
    "Tensor prediction, Tensor? x0, Tensor? noise, Tensor t, Tensor signal, Tensor noise_scale, Tensor? seed, "
    "Tensor? sample_offset, Tensor? stream, str target, str weighting, float gamma, str kind, "
    "float delta, SymInt frames, float shared, float own, bool progressive"
)
_library.define_triton(f"diffusion_loss({_SCHEMA}, bool mean) -> Tensor", _launch_loss, fake_loss)
_library.define_triton(
    f"diffusion_loss_backward(Tensor upstream, {_SCHEMA}, str of) -> Tensor", _launch_backward, fake_backward
)


def loss(*arguments: Any) -> Tensor:
    return torch.ops.vdiff_fast_triton.diffusion_loss.default(*arguments)


def backward(*arguments: Any) -> Tensor:
    return torch.ops.vdiff_fast_triton.diffusion_loss_backward.default(*arguments)
