"""Triton kernels: a program takes a tile of a row, value and gate; in the backward of the rows whose dbias it sums."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from vdiff_fast import _library
from vdiff_fast.ops._common.triton.biased_rows import launch_backward, launch_forward
from vdiff_fast.ops.geglu.native import fake_backward, fake_forward


@triton.jit
def _normal_cdf(x):
    return 0.5 * (1.0 + tl.erf(x * 0.7071067811865476))


@triton.jit
def _halves(x_ptr, bias_ptr, at, column, width, mask, HAS_BIAS: tl.constexpr):
    """value and gate of x + bias; `at` is the value's offset, the gate lies `width` further."""
    value = tl.load(x_ptr + at, mask=mask, other=0.0).to(tl.float32)
    gate = tl.load(x_ptr + at + width, mask=mask, other=0.0).to(tl.float32)
    if HAS_BIAS:
        value += tl.load(bias_ptr + column, mask=mask, other=0.0)
        gate += tl.load(bias_ptr + width + column, mask=mask, other=0.0)
    return value, gate


@triton.jit
def forward_kernel(x_ptr, bias_ptr, y_ptr, width, tiles, HAS_BIAS: tl.constexpr, BLOCK: tl.constexpr):
    program = tl.program_id(0).to(tl.int64)
    row, column = program // tiles, program % tiles * BLOCK + tl.arange(0, BLOCK)
    mask = column < width
    value, gate = _halves(x_ptr, bias_ptr, row * 2 * width + column, column, width, mask, HAS_BIAS)
    y = value * gate * _normal_cdf(gate)
    tl.store(y_ptr + row * width + column, y.to(y_ptr.dtype.element_ty), mask=mask)


@triton.jit
def backward_kernel(
    dy_ptr, x_ptr, bias_ptr, dx_ptr, partial_ptr, rows, width, tiles, walk,
    HAS_BIAS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0).to(tl.int64)
    chunk, column = program // tiles, program % tiles * BLOCK + tl.arange(0, BLOCK)
    mask = column < width
    total_value = tl.zeros([BLOCK], tl.float32)
    total_gate = tl.zeros([BLOCK], tl.float32)
    for i in range(0, tl.minimum(walk, rows - chunk * walk)):
        row = chunk * walk + i
        at = row * 2 * width + column
        value, gate = _halves(x_ptr, bias_ptr, at, column, width, mask, HAS_BIAS)
        dy = tl.load(dy_ptr + row * width + column, mask=mask, other=0.0).to(tl.float32)
        cdf = _normal_cdf(gate)
        pdf = 0.3989422804014327 * tl.exp(-0.5 * gate * gate)
        dvalue, dgate = dy * gate * cdf, dy * value * (cdf + gate * pdf)
        tl.store(dx_ptr + at, dvalue.to(dx_ptr.dtype.element_ty), mask=mask)
        tl.store(dx_ptr + at + width, dgate.to(dx_ptr.dtype.element_ty), mask=mask)
        total_value += dvalue
        total_gate += dgate
    if HAS_BIAS:
        tl.store(partial_ptr + chunk * 2 * width + column, total_value, mask=mask)
        tl.store(partial_ptr + chunk * 2 * width + width + column, total_gate, mask=mask)


def _launch_forward(x: Tensor, bias: Tensor | None) -> Tensor:
    return launch_forward(forward_kernel, x, bias, fake_forward(x, bias))


def _launch_backward(dy: Tensor, x: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    return launch_backward(backward_kernel, dy, x, bias, *fake_backward(dy, x, bias))


_library.define_triton("geglu_forward(Tensor x, Tensor? bias) -> Tensor", _launch_forward, fake_forward)
_library.define_triton(
    "geglu_backward(Tensor dy, Tensor x, Tensor? bias) -> (Tensor, Tensor)", _launch_backward, fake_backward
)


def forward(x: Tensor, bias: Tensor | None) -> Tensor:
    return torch.ops.vdiff_fast_triton.geglu_forward.default(x, bias)


def backward(dy: Tensor, x: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    return torch.ops.vdiff_fast_triton.geglu_backward.default(dy, x, bias)
