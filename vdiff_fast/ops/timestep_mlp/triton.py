"""Triton kernels, a launch per layer: sinusoids and W1, then SiLU and W2; a program per tile of rows and samples."""

from __future__ import annotations

import math
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from vdiff_fast import _library
from vdiff_fast.ops._common.triton.sincos import sincos
from vdiff_fast.ops.timestep_mlp.config import LINEAR, samples_of
from vdiff_fast.ops.timestep_mlp.native import fake_timestep_mlp


@triton.jit
def _sinusoid(time, column, dim, RATE: tl.constexpr, FLIP: tl.constexpr):
    """Column of the embedding, (samples, columns); an odd dim ends in a zero."""
    half = dim // 2
    first = column < half
    frequency = tl.exp(tl.where(first, column, column - half).to(tl.float64) * RATE)
    sine, cosine = sincos(time[:, None] * frequency[None, :])
    if FLIP:
        value = tl.where(first[None, :], cosine, sine)
    else:
        value = tl.where(first[None, :], sine, cosine)
    return tl.where((column < 2 * half)[None, :], value, 0.0)


@triton.jit
def _add_product(acc, x, w_ptr, row, column, rows, columns):
    """acc (samples, rows) + x (samples, columns) w^T in float32; weights are read once per program."""
    at = row[:, None].to(tl.int64) * columns + column[None, :]
    mask = (row < rows)[:, None] & (column < columns)[None, :]
    w = tl.load(w_ptr + at, mask=mask, other=0.0).to(tl.float32)
    return tl.dot(x, tl.trans(w), acc, input_precision="ieee")


@triton.jit
def _biased(acc, bias_ptr, row, rows):
    if bias_ptr is not None:
        acc += tl.load(bias_ptr + row, mask=row < rows, other=0.0).to(tl.float32)[None, :]
    return acc


@triton.jit
def first_kernel(
    t_ptr, w_ptr, bias_ptr, pre_ptr, batch, rows, columns, tiles,
    RATE: tl.constexpr, SCALE: tl.constexpr, FLIP: tl.constexpr,
    SAMPLES: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """RATE and SCALE are constants: a scalar argument would be rounded to float32."""
    program = tl.program_id(0)
    row = program % tiles * ROWS + tl.arange(0, ROWS)
    sample = program // tiles * SAMPLES + tl.arange(0, SAMPLES)
    time = tl.load(t_ptr + sample, mask=sample < batch, other=0).to(tl.float64) * SCALE
    acc = tl.zeros((SAMPLES, ROWS), tl.float32)
    start = tiles * 0
    while start < columns:
        column = start + tl.arange(0, COLUMNS)
        x = _sinusoid(time, column, columns, RATE, FLIP)
        acc = _add_product(acc, x.to(w_ptr.dtype.element_ty).to(tl.float32), w_ptr, row, column, rows, columns)
        start += COLUMNS
    acc = _biased(acc, bias_ptr, row, rows)
    at = sample[:, None].to(tl.int64) * rows + row[None, :]
    tl.store(pre_ptr + at, acc, mask=(sample < batch)[:, None] & (row < rows)[None, :])


@triton.jit
def second_kernel(
    pre_ptr, w_ptr, bias_ptr, y_ptr, batch, rows, columns, tiles,
    SAMPLES: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0)
    row = program % tiles * ROWS + tl.arange(0, ROWS)
    sample = program // tiles * SAMPLES + tl.arange(0, SAMPLES)
    acc = tl.zeros((SAMPLES, ROWS), tl.float32)
    start = tiles * 0
    while start < columns:
        column = start + tl.arange(0, COLUMNS)
        at = sample[:, None].to(tl.int64) * columns + column[None, :]
        h = tl.load(pre_ptr + at, mask=(sample < batch)[:, None] & (column < columns)[None, :], other=0.0)
        acc = _add_product(acc, h / (1.0 + tl.exp(-h)), w_ptr, row, column, rows, columns)
        start += COLUMNS
    acc = _biased(acc, bias_ptr, row, rows)
    at = sample[:, None].to(tl.int64) * rows + row[None, :]
    tl.store(y_ptr + at, acc.to(y_ptr.dtype.element_ty), mask=(sample < batch)[:, None] & (row < rows)[None, :])


def _launch(
    t: Tensor,
    w1: Tensor,
    b1: Tensor | None,
    w2: Tensor,
    b2: Tensor | None,
    max_period: float,
    shift: float,
    flip_sin_to_cos: bool,
    scale: float,
) -> tuple[Tensor, Tensor]:
    y, pre = fake_timestep_mlp(t, w1, b1, w2)
    batch, (hidden, dim), out = t.shape[0], w1.shape, w2.shape[0]
    if not batch:
        return y, pre
    size = samples_of(batch)
    blocks = triton.cdiv(batch, size)
    tile = {"SAMPLES": size, "ROWS": LINEAR.rows, "COLUMNS": LINEAR.columns, "num_warps": LINEAR.num_warps}
    tiles = triton.cdiv(hidden, LINEAR.rows)
    first_kernel[(tiles * blocks,)](
        t, w1, b1, pre, batch, hidden, dim, tiles,
        RATE=-math.log(max_period) / (dim // 2 - shift), SCALE=scale, FLIP=flip_sin_to_cos, **tile,
    )  # fmt: skip
    tiles = triton.cdiv(out, LINEAR.rows)
    second_kernel[(tiles * blocks,)](pre, w2, b2, y, batch, out, hidden, tiles, **tile)
    return y, pre


_library.define_triton(
    "timestep_mlp(Tensor t, Tensor w1, Tensor? b1, Tensor w2, Tensor? b2, float max_period, float shift, "
    "bool flip_sin_to_cos, float scale) -> (Tensor, Tensor)",
    _launch,
    fake_timestep_mlp,
)


def timestep_mlp(*arguments: Any) -> tuple[Tensor, Tensor]:
    return torch.ops.vdiff_fast_triton.timestep_mlp.default(*arguments)
