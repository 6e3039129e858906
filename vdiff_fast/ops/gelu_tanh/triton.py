"""Triton kernels: a program takes a tile of columns of one row, in the backward of the rows whose dbias it sums."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from vdiff_fast import _library
from vdiff_fast.ops._common.triton.biased_rows import launch_backward, launch_forward
from vdiff_fast.ops.gelu_tanh.native import fake_backward, fake_forward


@triton.jit
def _gate(z):
    """s = 1 / (1 + e^-v), v = sqrt(8/pi) (z + 0.044715 z^3), and ds/dz; z is clamped where s is 0 or 1 to float32."""
    z = tl.minimum(tl.maximum(z, -9.5), 9.5)
    e = tl.exp(-z * (1.5957691216057308 + 0.0713548162726009 * z * z))
    s = 1.0 / (1.0 + e)
    # 1 - s = e s, which does not cancel.
    return s, s * (e * s) * (1.5957691216057308 + 0.2140644488178027 * z * z)


@triton.jit
def forward_kernel(x_ptr, bias_ptr, y_ptr, width, tiles, HAS_BIAS: tl.constexpr, BLOCK: tl.constexpr):
    program = tl.program_id(0).to(tl.int64)
    row, column = program // tiles, program % tiles * BLOCK + tl.arange(0, BLOCK)
    mask = column < width
    z = tl.load(x_ptr + row * width + column, mask=mask, other=0.0).to(tl.float32)
    if HAS_BIAS:
        z += tl.load(bias_ptr + column, mask=mask, other=0.0)
    s, _ = _gate(z)
    tl.store(y_ptr + row * width + column, (z * s).to(y_ptr.dtype.element_ty), mask=mask)


@triton.jit
def backward_kernel(
    dy_ptr, x_ptr, bias_ptr, dx_ptr, partial_ptr, rows, width, tiles, walk,
    HAS_BIAS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0).to(tl.int64)
    chunk, column = program // tiles, program % tiles * BLOCK + tl.arange(0, BLOCK)
    mask = column < width
    total = tl.zeros([BLOCK], tl.float32)
    for i in range(0, tl.minimum(walk, rows - chunk * walk)):
        at = (chunk * walk + i) * width + column
        z = tl.load(x_ptr + at, mask=mask, other=0.0).to(tl.float32)
        if HAS_BIAS:
            z += tl.load(bias_ptr + column, mask=mask, other=0.0)
        s, ds = _gate(z)
        dx = tl.load(dy_ptr + at, mask=mask, other=0.0).to(tl.float32) * (s + z * ds)
        tl.store(dx_ptr + at, dx.to(dx_ptr.dtype.element_ty), mask=mask)
        total += dx
    if HAS_BIAS:
        tl.store(partial_ptr + chunk * width + column, total, mask=mask)


def _launch_forward(x: Tensor, bias: Tensor | None) -> Tensor:
    return launch_forward(forward_kernel, x, bias, fake_forward(x, bias))


def _launch_backward(dy: Tensor, x: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    return launch_backward(backward_kernel, dy, x, bias, *fake_backward(dy, x, bias))


_library.define_triton("gelu_tanh_forward(Tensor x, Tensor? bias) -> Tensor", _launch_forward, fake_forward)
_library.define_triton(
    "gelu_tanh_backward(Tensor dy, Tensor x, Tensor? bias) -> (Tensor, Tensor)", _launch_backward, fake_backward
)


def forward(x: Tensor, bias: Tensor | None) -> Tensor:
    return torch.ops.vdiff_fast_triton.gelu_tanh_forward.default(x, bias)


def backward(dy: Tensor, x: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    return torch.ops.vdiff_fast_triton.gelu_tanh_backward.default(dy, x, bias)
