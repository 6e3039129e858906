"""Triton kernels: a program takes a tile of columns of one row, in the backward of the rows that it sums over."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from vdiff_fast import _library
from vdiff_fast.ops._common.triton.layer_norm import run_vector
from vdiff_fast.ops.gated_residual.config import tile_config
from vdiff_fast.ops.gated_residual.native import fake_backward, fake_forward


@triton.jit
def forward_kernel(
    residual_ptr, branch_ptr, gate_ptr, y_ptr, width, length, per_sample, gate_sample, gate_run, tiles,
    BLOCK: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0).to(tl.int64)
    row, tile = program // tiles, program % tiles
    column = tile * BLOCK + tl.arange(0, BLOCK)
    mask = column < width
    at = row * width + column
    gate = run_vector(gate_ptr, row // length, per_sample, gate_sample, gate_run, column, mask)
    branch = tl.load(branch_ptr + at, mask=mask, other=0.0).to(tl.float32)
    y = tl.load(residual_ptr + at, mask=mask, other=0.0).to(tl.float32) + gate * branch
    tl.store(y_ptr + at, y.to(y_ptr.dtype.element_ty), mask=mask)


@triton.jit
def backward_kernel(
    dy_ptr, branch_ptr, gate_ptr, dbranch_ptr, partial_ptr, width, length, per_sample, gate_sample, gate_run, tiles,
    chunks, walk, BLOCK: tl.constexpr,
):  # fmt: skip
    """dbranch, and the sums of dy * branch over the program's rows of one run."""
    program = tl.program_id(0).to(tl.int64)
    chunk, tile = program // tiles, program % tiles
    run, within = chunk // chunks, chunk % chunks * walk
    column = tile * BLOCK + tl.arange(0, BLOCK)
    mask = column < width
    gate = run_vector(gate_ptr, run, per_sample, gate_sample, gate_run, column, mask)
    total = tl.zeros([BLOCK], tl.float32)
    for i in range(0, tl.minimum(walk, length - within)):
        at = (run * length + within + i) * width + column
        dy = tl.load(dy_ptr + at, mask=mask, other=0.0).to(tl.float32)
        total += dy * tl.load(branch_ptr + at, mask=mask, other=0.0).to(tl.float32)
        tl.store(dbranch_ptr + at, (dy * gate).to(dbranch_ptr.dtype.element_ty), mask=mask)
    tl.store(partial_ptr + chunk * width + column, total.to(partial_ptr.dtype.element_ty), mask=mask)


def _launch_forward(residual: Tensor, branch: Tensor, gate: Tensor) -> Tensor:
    y = fake_forward(residual, branch, gate)
    if y.numel():
        batch, tokens, width = y.shape
        length, runs = tokens // gate.shape[1], gate.shape[1]
        config = tile_config(width, batch * tokens, length)
        tiles = triton.cdiv(width, config.block)
        forward_kernel[(batch * tokens * tiles,)](
            residual, branch, gate, y, width, length, runs, gate.stride(0), gate.stride(1), tiles,
            BLOCK=config.block, num_warps=config.num_warps,
        )  # fmt: skip
    return y


def _launch_backward(dy: Tensor, branch: Tensor, gate: Tensor) -> tuple[Tensor, Tensor]:
    dbranch, dgate = fake_backward(dy, branch, gate)
    if dy.numel() == 0:
        return dbranch, dgate.zero_()
    batch, tokens, width = dy.shape
    runs = gate.shape[1]
    length = tokens // runs
    config = tile_config(width, batch * tokens, length)
    tiles, chunks = triton.cdiv(width, config.block), triton.cdiv(length, config.rows)
    # Where a run is one chunk, its sum is the gradient.
    partial = dgate if chunks == 1 else dy.new_empty((batch, runs, chunks, width), dtype=torch.float32)
    backward_kernel[(batch * runs * chunks * tiles,)](
        dy, branch, gate, dbranch, partial, width, length, runs, gate.stride(0), gate.stride(1), tiles, chunks,
        config.rows, BLOCK=config.block, num_warps=config.num_warps,
    )  # fmt: skip
    if chunks > 1:
        wide = torch.float64 if dy.dtype == torch.float32 else torch.float32
        dgate = partial.sum(2, dtype=wide).to(gate.dtype)
    return dbranch, dgate


_library.define_triton(
    "gated_residual_forward(Tensor residual, Tensor branch, Tensor gate) -> Tensor", _launch_forward, fake_forward
)
_library.define_triton(
    "gated_residual_backward(Tensor dy, Tensor branch, Tensor gate) -> (Tensor, Tensor)",
    _launch_backward,
    fake_backward,
)


def forward(*args: Any) -> Tensor:
    return torch.ops.vdiff_fast_triton.gated_residual_forward.default(*args)


def backward(*args: Any) -> tuple[Tensor, Tensor]:
    return torch.ops.vdiff_fast_triton.gated_residual_backward.default(*args)
