"""Triton kernels of the adaLN ops: one row a program, held in registers; column sums over the rows that it walks."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from vdiff_fast.ops._common.layer_norm_config import RowConfig, row_config
from vdiff_fast.ops._common.triton.pieces import load_row, row_sum, store_row, zero_outside
from vdiff_fast.ops._common.triton.sums import rounded_product


@triton.jit
def run_at(run, per_sample, sample_stride, run_stride):
    """Where the vector of one run of rows begins."""
    sample = (run // per_sample).to(tl.int64)
    return sample * sample_stride + (run % per_sample).to(tl.int64) * run_stride


@triton.jit
def run_vector(ptr, run, per_sample, sample_stride, run_stride, column, mask):
    """The vector of one run of rows, by stride, as float32."""
    at = run_at(run, per_sample, sample_stride, run_stride)
    return tl.load(ptr + at + column, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def forward_kernel(
    residual_ptr, branch_ptr, gate_ptr, shift_ptr, scale_ptr, weight_ptr, bias_ptr, h_ptr, y_ptr, statistics_ptr,
    rows, width, length, per_sample, gate_sample, gate_run, shift_sample, shift_run, scale_sample, scale_run, eps,
    GATED: tl.constexpr, HAS_WEIGHT: tl.constexpr, HAS_BIAS: tl.constexpr,
    HEAD: tl.constexpr, TAIL: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    run = row // length
    at = row * width
    x0, x1 = load_row(residual_ptr, at, width, HEAD, TAIL, EXACT)
    if GATED:
        gate_at = run_at(run, per_sample, gate_sample, gate_run)
        gate0, gate1 = load_row(gate_ptr, gate_at, width, HEAD, TAIL, EXACT)
        branch0, branch1 = load_row(branch_ptr, at, width, HEAD, TAIL, EXACT)
        # The norm is that of h as it is stored.
        x0 = (x0 + gate0 * branch0).to(h_ptr.dtype.element_ty).to(tl.float32)
        x1 = (x1 + gate1 * branch1).to(h_ptr.dtype.element_ty).to(tl.float32)
        store_row(h_ptr, at, x0, x1, width, HEAD, TAIL, EXACT)
    n = tl.cast(width, tl.float32)
    high = row_sum(x0, x1, TAIL) / n
    # The mean's rounding is taken out again: it counts where the mean is far above the deviation.
    d0, d1 = zero_outside(x0 - high, x1 - high, width, HEAD, TAIL, EXACT)
    low = row_sum(d0, d1, TAIL) / n
    squares = row_sum(rounded_product(d0, d0), rounded_product(d1, d1), TAIL)
    rstd = 1.0 / tl.sqrt_rn(squares / n - low * low + tl.cast(eps, tl.float32))
    tl.store(statistics_ptr + row, high)
    tl.store(statistics_ptr + rows + row, low)
    tl.store(statistics_ptr + 2 * tl.cast(rows, tl.int64) + row, rstd)
    z0, z1 = (d0 - low) * rstd, (d1 - low) * rstd
    if HAS_WEIGHT:
        weight0, weight1 = load_row(weight_ptr, 0, width, HEAD, TAIL, EXACT)
        z0, z1 = z0 * weight0, z1 * weight1
    if HAS_BIAS:
        bias0, bias1 = load_row(bias_ptr, 0, width, HEAD, TAIL, EXACT)
        z0, z1 = z0 + bias0, z1 + bias1
    scale_at = run_at(run, per_sample, scale_sample, scale_run)
    scale0, scale1 = load_row(scale_ptr, scale_at, width, HEAD, TAIL, EXACT)
    shift_at = run_at(run, per_sample, shift_sample, shift_run)
    shift0, shift1 = load_row(shift_ptr, shift_at, width, HEAD, TAIL, EXACT)
    store_row(
        y_ptr, at, z0 * (1.0 + scale0) + shift0, z1 * (1.0 + scale1) + shift1, width, HEAD, TAIL, EXACT
    )  # fmt: skip


@triton.jit
def backward_kernel(
    dy_ptr, dh_ptr, h_ptr, branch_ptr, gate_ptr, scale_ptr, weight_ptr, bias_ptr, statistics_ptr,
    dx_ptr, dbranch_ptr, dgate_ptr, dshift_ptr, dscale_ptr, partial_ptr,
    rows, width, length, per_sample, gate_sample, gate_run, scale_sample, scale_run, chunks, walk,
    GATED: tl.constexpr, HAS_DH: tl.constexpr, HAS_WEIGHT: tl.constexpr, HAS_BIAS: tl.constexpr,
    PER_TOKEN: tl.constexpr, HEAD: tl.constexpr, TAIL: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    """Writes dx (and dbranch), and the sums of its rows: dy, dy*normed, dh*branch of one run; or, where every token has
    a vector of its own, whose gradient needs no sum, those of dz and dz*normed, z = normed * weight + bias."""
    program = tl.program_id(0).to(tl.int64)
    if PER_TOKEN:
        first = program * walk
        count = tl.minimum(walk, rows - first)
    else:
        within = program % chunks * walk
        first = program // chunks * length + within
        count = tl.minimum(walk, length - within)
    NARROW: tl.constexpr = TAIL if TAIL > 0 else HEAD
    dy_sum0, dy_sum1 = tl.zeros([HEAD], tl.float32), tl.zeros([NARROW], tl.float32)
    dot_sum0, dot_sum1 = tl.zeros([HEAD], tl.float32), tl.zeros([NARROW], tl.float32)
    dgate_sum0, dgate_sum1 = tl.zeros([HEAD], tl.float32), tl.zeros([NARROW], tl.float32)
    n = tl.cast(width, tl.float32)
    # Of rows to 8191 a multiprocessor holds one block: then all loads are asked for before the sums, which wait. Wider
    # rows have no registers for that.
    EARLY: tl.constexpr = GATED and HEAD == 4096
    for i in range(0, count):
        row = first + i
        run = row // length
        at = row * width
        mean_high = tl.load(statistics_ptr + row)
        mean_low = tl.load(statistics_ptr + rows + row)
        rstd = tl.load(statistics_ptr + 2 * tl.cast(rows, tl.int64) + row)
        h0, h1 = load_row(h_ptr, at, width, HEAD, TAIL, EXACT)
        normed0, normed1 = zero_outside(
            (h0 - mean_high - mean_low) * rstd, (h1 - mean_high - mean_low) * rstd, width, HEAD, TAIL, EXACT
        )
        dy0, dy1 = load_row(dy_ptr, at, width, HEAD, TAIL, EXACT)
        if EARLY:
            branch0, branch1 = load_row(branch_ptr, at, width, HEAD, TAIL, EXACT)
            if HAS_DH:
                dh0, dh1 = load_row(dh_ptr, at, width, HEAD, TAIL, EXACT)
        scale_at = run_at(run, per_sample, scale_sample, scale_run)
        scale0, scale1 = load_row(scale_ptr, scale_at, width, HEAD, TAIL, EXACT)
        dz0, dz1 = rounded_product(dy0, 1.0 + scale0), rounded_product(dy1, 1.0 + scale1)
        if HAS_WEIGHT:
            weight0, weight1 = load_row(weight_ptr, 0, width, HEAD, TAIL, EXACT)
        if PER_TOKEN:
            gained0, gained1 = normed0, normed1
            if HAS_WEIGHT:
                gained0, gained1 = gained0 * weight0, gained1 * weight1
            if HAS_BIAS:
                bias0, bias1 = load_row(bias_ptr, 0, width, HEAD, TAIL, EXACT)
                gained0, gained1 = gained0 + bias0, gained1 + bias1
            store_row(dshift_ptr, at, dy0, dy1, width, HEAD, TAIL, EXACT)
            store_row(dscale_ptr, at, dy0 * gained0, dy1 * gained1, width, HEAD, TAIL, EXACT)
            dy_sum0, dy_sum1 = dy_sum0 + dz0, dy_sum1 + dz1
            dot_sum0, dot_sum1 = dot_sum0 + dz0 * normed0, dot_sum1 + dz1 * normed1
        else:
            dy_sum0, dy_sum1 = dy_sum0 + dy0, dy_sum1 + dy1
            dot_sum0, dot_sum1 = dot_sum0 + dy0 * normed0, dot_sum1 + dy1 * normed1
        if HAS_WEIGHT:
            dz0, dz1 = rounded_product(dz0, weight0), rounded_product(dz1, weight1)
        mean = row_sum(dz0, dz1, TAIL) / n
        dot = row_sum(rounded_product(dz0, normed0), rounded_product(dz1, normed1), TAIL) / n
        dx0, dx1 = (dz0 - mean - normed0 * dot) * rstd, (dz1 - mean - normed1 * dot) * rstd
        if GATED:
            if not EARLY:
                branch0, branch1 = load_row(branch_ptr, at, width, HEAD, TAIL, EXACT)
                if HAS_DH:
                    dh0, dh1 = load_row(dh_ptr, at, width, HEAD, TAIL, EXACT)
            if HAS_DH:
                dx0, dx1 = dx0 + dh0, dx1 + dh1
            gate_at = run_at(run, per_sample, gate_sample, gate_run)
            gate0, gate1 = load_row(gate_ptr, gate_at, width, HEAD, TAIL, EXACT)
            store_row(dbranch_ptr, at, dx0 * gate0, dx1 * gate1, width, HEAD, TAIL, EXACT)
            if PER_TOKEN:
                store_row(dgate_ptr, at, dx0 * branch0, dx1 * branch1, width, HEAD, TAIL, EXACT)
            else:
                dgate_sum0, dgate_sum1 = dgate_sum0 + dx0 * branch0, dgate_sum1 + dx1 * branch1
        store_row(dx_ptr, at, dx0, dx1, width, HEAD, TAIL, EXACT)
    if not PER_TOKEN or HAS_WEIGHT or HAS_BIAS:
        SUMS: tl.constexpr = 3 if GATED else 2
        to = program * SUMS * width
        store_row(partial_ptr, to, dy_sum0, dy_sum1, width, HEAD, TAIL, EXACT)
        store_row(partial_ptr, to + width, dot_sum0, dot_sum1, width, HEAD, TAIL, EXACT)
        if GATED:
            store_row(partial_ptr, to + 2 * width, dgate_sum0, dgate_sum1, width, HEAD, TAIL, EXACT)


def sizes(x: Tensor, vectors: Tensor, *, backward: bool) -> tuple[dict[str, int], RowConfig]:
    """What every launch passes of x (B, N, D) and vectors (B, F, D), and its configuration."""
    batch, tokens, width = x.shape
    length = tokens // vectors.shape[1]
    config = row_config(width, batch * tokens, length, x.element_size(), backward=backward)
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
        PER_TOKEN=per_token, **config.pieces, num_warps=config.num_warps,
    )  # fmt: skip
    wide = torch.float64 if h.dtype == torch.float32 else torch.float32
    if per_token:
        return partial.sum(0, dtype=wide) if weight is not None or bias is not None else partial[0]
    return partial.view(*scale.shape[:2], chunks, *partial.shape[1:]).sum(2, dtype=wide)
