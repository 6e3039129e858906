"""Triton kernels of the adaLN ops: one row a program, held in registers; column sums over the rows that it walks."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from vdiff_fast.ops._common.layer_norm_config import RowConfig, row_config
from vdiff_fast.ops._common.triton.sums import rounded_product


@triton.jit
def run_vector(ptr, run, per_sample, sample_stride, run_stride, column, mask):
    """The vector of one run of rows, by stride, as float32."""
    sample = (run // per_sample).to(tl.int64)
    at = sample * sample_stride + (run % per_sample).to(tl.int64) * run_stride
    return tl.load(ptr + at + column, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def forward_kernel(
    residual_ptr, branch_ptr, gate_ptr, shift_ptr, scale_ptr, weight_ptr, bias_ptr, h_ptr, y_ptr, statistics_ptr,
    rows, width, length, per_sample, gate_sample, gate_run, shift_sample, shift_run, scale_sample, scale_run, eps,
    GATED: tl.constexpr, HAS_WEIGHT: tl.constexpr, HAS_BIAS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    run = row // length
    column = tl.arange(0, BLOCK)
    mask = column < width
    at = row * width + column
    x = tl.load(residual_ptr + at, mask=mask, other=0.0).to(tl.float32)
    if GATED:
        gate = run_vector(gate_ptr, run, per_sample, gate_sample, gate_run, column, mask)
        h = x + gate * tl.load(branch_ptr + at, mask=mask, other=0.0).to(tl.float32)
        h = h.to(h_ptr.dtype.element_ty)
        tl.store(h_ptr + at, h, mask=mask)
        x = h.to(tl.float32)  # the norm is that of h as it is stored
    n = tl.cast(width, tl.float32)
    high = tl.sum(x, 0) / n
    # The mean's rounding is taken out again: it counts where the mean is far above the deviation.
    d = tl.where(mask, x - high, 0.0)
    low = tl.sum(d, 0) / n
    rstd = 1.0 / tl.sqrt_rn(tl.sum(rounded_product(d, d), 0) / n - low * low + tl.cast(eps, tl.float32))
    tl.store(statistics_ptr + row, high)
    tl.store(statistics_ptr + rows + row, low)
    tl.store(statistics_ptr + 2 * tl.cast(rows, tl.int64) + row, rstd)
    z = (d - low) * rstd
    if HAS_WEIGHT:
        z *= tl.load(weight_ptr + column, mask=mask, other=0.0)
    if HAS_BIAS:
        z += tl.load(bias_ptr + column, mask=mask, other=0.0)
    gain = 1.0 + run_vector(scale_ptr, run, per_sample, scale_sample, scale_run, column, mask)
    y = z * gain + run_vector(shift_ptr, run, per_sample, shift_sample, shift_run, column, mask)
    tl.store(y_ptr + at, y.to(y_ptr.dtype.element_ty), mask=mask)


@triton.jit
def backward_kernel(
    dy_ptr, dh_ptr, h_ptr, branch_ptr, gate_ptr, scale_ptr, weight_ptr, bias_ptr, statistics_ptr,
    dx_ptr, dbranch_ptr, dgate_ptr, dshift_ptr, dscale_ptr, partial_ptr,
    rows, width, length, per_sample, gate_sample, gate_run, scale_sample, scale_run, chunks, walk,
    GATED: tl.constexpr, HAS_DH: tl.constexpr, HAS_WEIGHT: tl.constexpr, HAS_BIAS: tl.constexpr,
    PER_TOKEN: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Writes dx (and dbranch), and the sums of its rows: dy, dy*normed, dh*branch of one run; or, where every token has
    a vector of its own, whose gradient needs no sum, those of dz and dz*normed, z = normed * weight + bias."""
    program = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    mask = column < width
    if PER_TOKEN:
        first = program * walk
        count = tl.minimum(walk, rows - first)
    else:
        within = program % chunks * walk
        first = program // chunks * length + within
        count = tl.minimum(walk, length - within)
    sum_0 = tl.zeros([BLOCK], tl.float32)
    sum_1 = tl.zeros([BLOCK], tl.float32)
    sum_2 = tl.zeros([BLOCK], tl.float32)
    n = tl.cast(width, tl.float32)
    for i in range(0, count):
        row = first + i
        run = row // length
        at = row * width + column
        high = tl.load(statistics_ptr + row)
        low = tl.load(statistics_ptr + rows + row)
        rstd = tl.load(statistics_ptr + 2 * tl.cast(rows, tl.int64) + row)
        normed = tl.load(h_ptr + at, mask=mask, other=0.0).to(tl.float32)
        normed = tl.where(mask, (normed - high - low) * rstd, 0.0)
        dy = tl.load(dy_ptr + at, mask=mask, other=0.0).to(tl.float32)
        gain = 1.0 + run_vector(scale_ptr, run, per_sample, scale_sample, scale_run, column, mask)
        dz = rounded_product(dy, gain)
        if PER_TOKEN:
            gained = normed
            if HAS_WEIGHT:
                gained *= tl.load(weight_ptr + column, mask=mask, other=0.0)
            if HAS_BIAS:
                gained += tl.load(bias_ptr + column, mask=mask, other=0.0)
            tl.store(dshift_ptr + at, dy.to(dshift_ptr.dtype.element_ty), mask=mask)
            tl.store(dscale_ptr + at, (dy * gained).to(dscale_ptr.dtype.element_ty), mask=mask)
            sum_0 += dz
            sum_1 += dz * normed
        else:
            sum_0 += dy
            sum_1 += dy * normed
        if HAS_WEIGHT:
            dz = rounded_product(dz, tl.load(weight_ptr + column, mask=mask, other=0.0))
        mean = tl.sum(dz, 0) / n
        dot = tl.sum(rounded_product(dz, normed), 0) / n
        dx = (dz - mean - normed * dot) * rstd
        if GATED:
            if HAS_DH:
                dx += tl.load(dh_ptr + at, mask=mask, other=0.0).to(tl.float32)
            gate = run_vector(gate_ptr, run, per_sample, gate_sample, gate_run, column, mask)
            tl.store(dbranch_ptr + at, (dx * gate).to(dbranch_ptr.dtype.element_ty), mask=mask)
            dgate = dx * tl.load(branch_ptr + at, mask=mask, other=0.0).to(tl.float32)
            if PER_TOKEN:
                tl.store(dgate_ptr + at, dgate.to(dgate_ptr.dtype.element_ty), mask=mask)
            else:
                sum_2 += dgate
        tl.store(dx_ptr + at, dx.to(dx_ptr.dtype.element_ty), mask=mask)
    if not PER_TOKEN or HAS_WEIGHT or HAS_BIAS:
        SUMS: tl.constexpr = 3 if GATED else 2
        partial = partial_ptr + program * SUMS * width + column
        tl.store(partial, sum_0, mask=mask)
        tl.store(partial + width, sum_1, mask=mask)
        if GATED:
            tl.store(partial + 2 * width, sum_2, mask=mask)


def sizes(x: Tensor, vectors: Tensor, *, backward: bool) -> tuple[dict[str, int], RowConfig]:
    """What every launch passes of x (B, N, D) and vectors (B, F, D), and its configuration."""
    batch, tokens, width = x.shape
    length = tokens // vectors.shape[1]
    config = row_config(width, batch * tokens, length, backward=backward)
    return {"rows": batch * tokens, "width": width, "length": length, "per_sample": vectors.shape[1]}, config


def strides(**vectors: Tensor) -> dict[str, int]:
    """`<name>_sample` and `<name>_run` of vectors (B, F, D)."""
    named = {f"{name}_sample": v.stride(0) for name, v in vectors.items()}
    return named | {f"{name}_run": v.stride(1) for name, v in vectors.items()}


def launch_backward(
    dy: Tensor, dh: Tensor | None, h: Tensor, branch: Tensor | None, gate: Tensor | None, scale: Tensor,
    weight: Tensor | None, bias: Tensor | None, statistics: Tensor, dx: Tensor, dbranch: Tensor | None,
    gradients: list[Tensor],
) -> Tensor:  # fmt: skip
    """Fills dx, dbranch, and for vectors per token their gradients (dshift, dscale, dgate).

    Returns:
        Sums over each run (B, F, 2 or 3, D) in a wide dtype; for vectors per token sums over all tokens (2 or 3, D).
    """
    shared, config = sizes(h, scale, backward=True)
    gated, rows, length = gate is not None, shared["rows"], shared["length"]
    per_token = length == 1
    chunks = 1 if per_token else triton.cdiv(length, config.rows)
    programs = triton.cdiv(rows, config.rows) if per_token else rows // length * chunks
    partial = h.new_empty((programs, 3 if gated else 2, h.shape[2]), dtype=torch.float32)
    absent = h  # an absent tensor's pointer is not touched
    dshift, dscale, dgate = (*gradients, absent)[:3]
    backward_kernel[(programs,)](
        dy, absent if dh is None else dh, h, absent if branch is None else branch, absent if gate is None else gate,
        scale, absent if weight is None else weight, absent if bias is None else bias, statistics,
        dx, absent if dbranch is None else dbranch, dgate, dshift, dscale, partial,
        **shared, **strides(gate=scale if gate is None else gate, scale=scale), chunks=chunks, walk=config.rows,
        GATED=gated, HAS_DH=dh is not None, HAS_WEIGHT=weight is not None, HAS_BIAS=bias is not None,
        PER_TOKEN=per_token, BLOCK=config.block, num_warps=config.num_warps,
    )  # fmt: skip
    wide = torch.float64 if h.dtype == torch.float32 else torch.float32
    if per_token:
        return partial.sum(0, dtype=wide) if weight is not None or bias is not None else partial[0]
    return partial.view(*scale.shape[:2], chunks, *partial.shape[1:]).sum(2, dtype=wide)
