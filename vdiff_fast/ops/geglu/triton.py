"""Triton kernels: one program per tile of one row, value and gate read once."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from vdiff_fast import _library
from vdiff_fast.ops.geglu.config import TileConfig, tile_config
from vdiff_fast.ops.geglu.native import fake_backward, fake_forward


@triton.jit
def _normal_cdf(x):
    return 0.5 * (1.0 + tl.erf(x * 0.7071067811865476))


@triton.jit
def forward_kernel(x_ptr, y_ptr, width, tiles, BLOCK: tl.constexpr):
    program = tl.program_id(0).to(tl.int64)
    row, tile = program // tiles, program % tiles
    column = tile * BLOCK + tl.arange(0, BLOCK)
    mask = column < width
    value = tl.load(x_ptr + row * 2 * width + column, mask=mask, other=0.0).to(tl.float32)
    gate = tl.load(x_ptr + row * 2 * width + width + column, mask=mask, other=0.0).to(tl.float32)
    y = value * gate * _normal_cdf(gate)
    tl.store(y_ptr + row * width + column, y.to(y_ptr.dtype.element_ty), mask=mask)


@triton.jit
def backward_kernel(dy_ptr, x_ptr, dx_ptr, width, tiles, BLOCK: tl.constexpr):
    program = tl.program_id(0).to(tl.int64)
    row, tile = program // tiles, program % tiles
    column = tile * BLOCK + tl.arange(0, BLOCK)
    mask = column < width
    value = tl.load(x_ptr + row * 2 * width + column, mask=mask, other=0.0).to(tl.float32)
    gate = tl.load(x_ptr + row * 2 * width + width + column, mask=mask, other=0.0).to(tl.float32)
    dy = tl.load(dy_ptr + row * width + column, mask=mask, other=0.0).to(tl.float32)
    cdf = _normal_cdf(gate)
    pdf = 0.3989422804014327 * tl.exp(-0.5 * gate * gate)
    dx = dx_ptr + row * 2 * width + column
    tl.store(dx, (dy * gate * cdf).to(dx_ptr.dtype.element_ty), mask=mask)
    tl.store(dx + width, (dy * value * (cdf + gate * pdf)).to(dx_ptr.dtype.element_ty), mask=mask)


def _grid(rows: int, width: int) -> tuple[TileConfig, int, tuple[int]]:
    config = tile_config(width)
    tiles = triton.cdiv(width, config.block)
    return config, tiles, (rows * tiles,)


def _launch_forward(x: Tensor) -> Tensor:
    y = fake_forward(x)
    if y.numel():
        width = y.shape[-1]
        config, tiles, grid = _grid(y.numel() // width, width)
        forward_kernel[grid](x, y, width, tiles, BLOCK=config.block, num_warps=config.num_warps)
    return y


def _launch_backward(dy: Tensor, x: Tensor) -> Tensor:
    dx = torch.empty_like(x)
    if dy.numel():
        width = dy.shape[-1]
        config, tiles, grid = _grid(dy.numel() // width, width)
        backward_kernel[grid](dy, x, dx, width, tiles, BLOCK=config.block, num_warps=config.num_warps)
    return dx


_library.define_triton("geglu_forward(Tensor x) -> Tensor", _launch_forward, fake_forward)
_library.define_triton("geglu_backward(Tensor dy, Tensor x) -> Tensor", _launch_backward, fake_backward)


def forward(x: Tensor) -> Tensor:
    return torch.ops.vdiff_fast_triton.geglu_forward.default(x)


def backward(dy: Tensor, x: Tensor) -> Tensor:
    return torch.ops.vdiff_fast_triton.geglu_backward.default(dy, x)
