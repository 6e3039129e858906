"""Triton kernels: a program takes tiles of rows, a row being one head of one token, of the queries or of the keys."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from vdiff_fast import _library
from vdiff_fast.ops._common.triton.strides import row_strides
from vdiff_fast.ops._common.triton.sums import rounded_product
from vdiff_fast.ops.qk_norm_rope.config import MAX_PROGRAMS, TileConfig, tile_config
from vdiff_fast.ops.qk_norm_rope.native import Optional, Pair, Parameters, fake_backward, fake_forward, fake_inplace


@triton.jit
def _place(block, T, S, heads, ROWS: tl.constexpr):
    """Sample, frame, and for every row [ROWS, 1] its position, head and whether it exists."""
    blocks = tl.cdiv(S * heads, ROWS)
    frame = block // blocks
    row = (block % blocks).to(tl.int32) * ROWS + tl.arange(0, ROWS)[:, None]
    s = row // heads
    return frame // T, frame % T, s, row - s * heads, row < S * heads


@triton.jit
def _rows(x, b, t, s, h, sb, st, ss, sh, UNIT: tl.constexpr, WIDTH: tl.constexpr):
    """Pointers [ROWS, WIDTH]."""
    row = b * sb + t * st + s.to(tl.int64) * ss + h.to(tl.int64) * sh
    return x + row * UNIT + tl.arange(0, WIDTH)[None, :]


@triton.jit
def _rotate(x, cos_ptr, sin_ptr, s, exists, d, INVERSE: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr):
    pair = tl.arange(0, WIDTH // 2)[None, :]
    inside = exists & (pair < d // 2)
    at = s.to(tl.int64) * (d // 2) + pair
    cos, sin = tl.load(cos_ptr + at, mask=inside, other=0.0), tl.load(sin_ptr + at, mask=inside, other=0.0)
    if INVERSE:
        sin = -sin
    even, odd = tl.split(tl.reshape(x, (ROWS, WIDTH // 2, 2)))
    return tl.reshape(tl.join(even * cos - odd * sin, even * sin + odd * cos), (ROWS, WIDTH))


@triton.jit
def _unit(x, eps, d, PRECISE: tl.constexpr):
    """x / rms(x) and 1 / rms(x) of every row; a division rounds once less, which shows in float32 alone."""
    rms = tl.sqrt(tl.sum(rounded_product(x, x), axis=1, keep_dims=True) / d + tl.cast(eps, tl.float32))
    scale = 1.0 / rms
    return (x / rms if PRECISE else x * scale), scale


@triton.jit
def _forward_rows(
    x_ptr, y_ptr, w_ptr, cos_ptr, sin_ptr, block, x_b, x_t, x_s, x_h, y_b, y_t, y_s, y_h, T, S, heads, eps,
    d: tl.constexpr, UNIT: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr,
    NORM: tl.constexpr, ROPE: tl.constexpr,
):  # fmt: skip
    b, t, s, h, exists = _place(block, T, S, heads, ROWS)
    c = tl.arange(0, WIDTH)[None, :]
    inside = exists & (c < d)
    x = tl.load(_rows(x_ptr, b, t, s, h, x_b, x_t, x_s, x_h, UNIT, WIDTH), mask=inside, other=0.0).to(tl.float32)
    PRECISE: tl.constexpr = x_ptr.dtype.element_ty == tl.float32
    if NORM:
        x = _unit(x, eps, d, PRECISE)[0] * tl.load(w_ptr + c, mask=c < d, other=0.0)
    if ROPE:
        x = _rotate(x, cos_ptr, sin_ptr, s, exists, d, False, ROWS, WIDTH)
    tl.store(_rows(y_ptr, b, t, s, h, y_b, y_t, y_s, y_h, UNIT, WIDTH), x.to(y_ptr.dtype.element_ty), mask=inside)


@triton.jit
def forward_kernel(
    q_ptr, k_ptr, qy_ptr, ky_ptr, qw_ptr, kw_ptr, cos_ptr, sin_ptr,
    q_b, q_t, q_s, q_h, k_b, k_t, k_s, k_h, qy_b, qy_t, qy_s, qy_h, ky_b, ky_t, ky_s, ky_h,
    q_blocks, T, q_S, k_S, heads, eps,
    d: tl.constexpr, UNIT: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr,
    NORM: tl.constexpr, ROPE: tl.constexpr,
):  # fmt: skip
    """A tile of q, or from program q_blocks on of k."""
    block = tl.program_id(0).to(tl.int64)
    if block < q_blocks:
        _forward_rows(
            q_ptr, qy_ptr, qw_ptr, cos_ptr, sin_ptr, block, q_b, q_t, q_s, q_h, qy_b, qy_t, qy_s, qy_h,
            T, q_S, heads, eps, d, UNIT, ROWS, WIDTH, NORM, ROPE,
        )  # fmt: skip
    else:
        _forward_rows(
            k_ptr, ky_ptr, kw_ptr, cos_ptr, sin_ptr, block - q_blocks, k_b, k_t, k_s, k_h, ky_b, ky_t, ky_s, ky_h,
            T, k_S, heads, eps, d, UNIT, ROWS, WIDTH, NORM, ROPE,
        )  # fmt: skip


@triton.jit
def _backward_rows(
    dy_ptr, x_ptr, dx_ptr, w_ptr, partial_ptr, cos_ptr, sin_ptr, program, programs, blocks,
    y_b, y_t, y_s, y_h, x_b, x_t, x_s, x_h, T, S, heads, eps,
    d: tl.constexpr, UNIT: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr,
    NORM: tl.constexpr, ROPE: tl.constexpr,
):  # fmt: skip
    """Every programs-th tile; dx is contiguous. dx = rstd * (g w - n mean(g w n)), n = x rstd, g = dy turned back."""
    PRECISE: tl.constexpr = x_ptr.dtype.element_ty == tl.float32
    c = tl.arange(0, WIDTH)[None, :]
    sums = tl.zeros([WIDTH], tl.float32)
    for block in range(program, blocks, programs):
        b, t, s, h, exists = _place(tl.cast(block, tl.int64), T, S, heads, ROWS)
        inside = exists & (c < d)
        g = tl.load(_rows(dy_ptr, b, t, s, h, y_b, y_t, y_s, y_h, UNIT, WIDTH), mask=inside, other=0.0).to(tl.float32)
        if ROPE:
            g = _rotate(g, cos_ptr, sin_ptr, s, exists, d, True, ROWS, WIDTH)
        if NORM:
            x = tl.load(_rows(x_ptr, b, t, s, h, x_b, x_t, x_s, x_h, UNIT, WIDTH), mask=inside, other=0.0).to(
                tl.float32
            )
            unit, scale = _unit(x, eps, d, PRECISE)
            # In two steps: shorter chains round less where a sum is no tree.
            sums += tl.sum(tl.sum(tl.reshape(rounded_product(g, unit), (ROWS // 8, 8, WIDTH)), axis=1), axis=0)
            g = g * tl.load(w_ptr + c, mask=c < d, other=0.0)
            g = scale * (g - unit * (tl.sum(rounded_product(g, unit), axis=1, keep_dims=True) / d))
        to = dx_ptr + (((b * T + t) * S + s) * heads + h) * d + c
        tl.store(to, g.to(dx_ptr.dtype.element_ty), mask=inside)
    if NORM:
        column = tl.arange(0, WIDTH)
        tl.store(partial_ptr + program.to(tl.int64) * d + column, sums, mask=column < d)


@triton.jit
def backward_kernel(
    dq_ptr, dk_ptr, q_ptr, k_ptr, qx_ptr, kx_ptr, qw_ptr, kw_ptr, q_partial_ptr, k_partial_ptr, cos_ptr, sin_ptr,
    dq_b, dq_t, dq_s, dq_h, dk_b, dk_t, dk_s, dk_h, q_b, q_t, q_s, q_h, k_b, k_t, k_s, k_h,
    q_programs, k_programs, q_blocks, k_blocks, T, q_S, k_S, heads, eps,
    d: tl.constexpr, UNIT: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr,
    NORM: tl.constexpr, ROPE: tl.constexpr,
):  # fmt: skip
    """Tiles of q, or from program q_programs on of k; qx and kx are the gradients that are written."""
    program = tl.program_id(0)
    if program < q_programs:
        _backward_rows(
            dq_ptr, q_ptr, qx_ptr, qw_ptr, q_partial_ptr, cos_ptr, sin_ptr, program, q_programs, q_blocks,
            dq_b, dq_t, dq_s, dq_h, q_b, q_t, q_s, q_h, T, q_S, heads, eps, d, UNIT, ROWS, WIDTH, NORM, ROPE,
        )  # fmt: skip
    else:
        _backward_rows(
            dk_ptr, k_ptr, kx_ptr, kw_ptr, k_partial_ptr, cos_ptr, sin_ptr, program - q_programs, k_programs, k_blocks,
            dk_b, dk_t, dk_s, dk_h, k_b, k_t, k_s, k_h, T, k_S, heads, eps, d, UNIT, ROWS, WIDTH, NORM, ROPE,
        )  # fmt: skip


def _blocks(x: Tensor, tile: TileConfig) -> int:
    return x.shape[0] * x.shape[1] * triton.cdiv(x.shape[2] * x.shape[3], tile.rows) if x.numel() else 0


def _flags(x: Tensor, unit: int, tile: TileConfig, q_weight: Optional, cos: Optional) -> dict[str, Any]:
    sizes = {"d": x.shape[4], "UNIT": unit, "ROWS": tile.rows, "WIDTH": tile.width, "num_warps": tile.num_warps}
    return sizes | {"NORM": q_weight is not None, "ROPE": cos is not None}


def _run_forward(q: Tensor, k: Tensor, outputs: Pair, parameters: Any) -> None:
    q_weight, k_weight, cos, sin, eps = parameters
    tile = tile_config(q.shape[4], backward=False)
    q_blocks, k_blocks = _blocks(q, tile), _blocks(k, tile)
    if q_blocks + k_blocks == 0:
        return
    tensors = [q if x is None else x for x in (q_weight, k_weight, cos, sin)]
    unit, strides = row_strides((q, k, *outputs))
    forward_kernel[(q_blocks + k_blocks,)](
        q, k, *outputs, *tensors, *strides, q_blocks, q.shape[1], q.shape[2], k.shape[2], q.shape[3],
        eps, **_flags(q, unit, tile, q_weight, cos),
    )  # fmt: skip


def _launch_forward(q: Tensor, k: Tensor, *parameters: Any) -> Pair:
    outputs = fake_forward(q, k)
    _run_forward(q, k, outputs, parameters)
    return outputs


def _launch_inplace(q: Tensor, k: Tensor, *parameters: Any) -> None:
    _run_forward(q, k, (q, k), parameters)


def _launch_backward(
    dq: Tensor,
    dk: Tensor,
    q: Optional,
    k: Optional,
    q_weight: Optional,
    k_weight: Optional,
    cos: Optional,
    sin: Optional,
    eps: float,
) -> tuple[Tensor, ...]:
    qx, kx, *dweights = fake_backward(dq, dk, q, k, q_weight, k_weight)
    tile = tile_config(dq.shape[4], backward=True)
    blocks = [_blocks(x, tile) for x in (dq, dk)]
    programs = [min(n, MAX_PROGRAMS) for n in blocks]
    if sum(programs) == 0:
        return qx, kx, *(w.zero_() for w in dweights)
    q, k = dq if q is None else q, dk if k is None else k
    partials = [w.new_empty((n, w.numel())) for n, w in zip(programs, dweights)]
    tensors = [dq if x is None else x for x in (q_weight, k_weight)]
    tables = [dq if x is None else x for x in (cos, sin)]
    unit, strides = row_strides((dq, dk, q, k))
    backward_kernel[(sum(programs),)](
        dq, dk, q, k, qx, kx, *tensors, *partials, *tables, *strides, *programs, *blocks,
        dq.shape[1], dq.shape[2], dk.shape[2], dq.shape[3], eps, **_flags(dq, unit, tile, q_weight, cos),
    )  # fmt: skip
    return qx, kx, *(p.sum(0) for p in partials)


_PARAMETERS = "Tensor? q_weight, Tensor? k_weight, Tensor? cos, Tensor? sin, float eps"
_library.define_triton(
    f"qk_norm_rope_forward(Tensor q, Tensor k, {_PARAMETERS}) -> (Tensor, Tensor)", _launch_forward, fake_forward
)
_library.define_triton(
    f"qk_norm_rope_inplace(Tensor(a!) q, Tensor(b!) k, {_PARAMETERS}) -> ()", _launch_inplace, fake_inplace
)
_library.define_triton(
    f"qk_norm_rope_backward(Tensor dq, Tensor dk, Tensor? q, Tensor? k, {_PARAMETERS}) -> "
    "(Tensor, Tensor, Tensor dq_weight, Tensor dk_weight)",
    _launch_backward,
    fake_backward,
)


def forward(q: Tensor, k: Tensor, parameters: Parameters) -> Pair:
    return torch.ops.vdiff_fast_triton.qk_norm_rope_forward.default(q, k, *parameters)


def inplace(q: Tensor, k: Tensor, parameters: Parameters) -> None:
    torch.ops.vdiff_fast_triton.qk_norm_rope_inplace.default(q, k, *parameters)


def backward(dq: Tensor, dk: Tensor, q: Optional, k: Optional, parameters: Parameters) -> tuple[Tensor, ...]:
    return torch.ops.vdiff_fast_triton.qk_norm_rope_backward.default(dq, dk, q, k, *parameters)
