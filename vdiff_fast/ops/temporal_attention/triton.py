"""Triton kernels: a program holds a block of positions of one head, [tiles, rows, d], and all T x T logits on the chip.

Forward reads q, k, v and writes out; backward reads q, k, v, dout, recomputes the weights and writes dq, dk, dv. Sums
over positions (bias, norm weights) leave as one partial per program and are added up in a fixed order: no atomics.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from vdiff_fast import _library
from vdiff_fast.ops._common.triton.strides import row_strides
from vdiff_fast.ops._common.triton.sums import rounded_product
from vdiff_fast.ops.temporal_attention.config import TileConfig, tile_config
from vdiff_fast.ops.temporal_attention.native import (
    Options,
    fake_backward,
    fake_backward_packed,
    fake_forward,
)


@triton.jit
def _place(S, heads, TILES: tl.constexpr, ROWS: tl.constexpr, FRAMES: tl.constexpr):
    """Sample, head, and for every row of [TILES, ROWS, 1] its position and frame."""
    program = tl.program_id(0).to(tl.int64)
    per_tile: tl.constexpr = ROWS // FRAMES
    blocks = (S + TILES * per_tile - 1) // (TILES * per_tile)
    h = program % heads
    block = (program // heads) % blocks
    b = program // heads // blocks
    tile = tl.arange(0, TILES)[:, None, None]
    row = tl.arange(0, ROWS)[None, :, None]
    s = (block * TILES + tile) * per_tile + row // FRAMES
    t = (row % FRAMES).to(tl.int64)
    return b, h, s, t


@triton.jit
def _load(x, b, h, s, t, sb, st, ss, sh, S, T, d, UNIT: tl.constexpr, WIDTH: tl.constexpr):
    c = tl.arange(0, WIDTH)[None, None, :]
    rows = x + (b * sb + h * sh + s * ss + t * st) * UNIT
    return tl.load(rows + c, mask=(s < S) & (t < T) & (c < d), other=0.0).to(tl.float32)


@triton.jit
def _store(x, value, b, h, s, t, sb, st, ss, sh, S, T, d, UNIT: tl.constexpr, WIDTH: tl.constexpr):
    c = tl.arange(0, WIDTH)[None, None, :]
    rows = x + (b * sb + h * sh + s * ss + t * st) * UNIT
    tl.store(rows + c, value.to(x.dtype.element_ty), mask=(s < S) & (t < T) & (c < d))


@triton.jit
def _tables(cos, sin, T, d, ROWS: tl.constexpr, FRAMES: tl.constexpr, WIDTH: tl.constexpr):
    t = (tl.arange(0, ROWS) % FRAMES)[None, :, None]
    pair = tl.arange(0, WIDTH // 2)[None, None, :]
    at = t * (d // 2) + pair
    inside = (t < T) & (pair < d // 2)
    return tl.load(cos + at, mask=inside, other=0.0), tl.load(sin + at, mask=inside, other=0.0)


@triton.jit
def _rotate(x, cos, sin, TILES: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr):
    even, odd = tl.split(tl.reshape(x, (TILES, ROWS, WIDTH // 2, 2)))
    turned = tl.join(even * cos - odd * sin, even * sin + odd * cos)
    return tl.reshape(turned, (TILES, ROWS, WIDTH))


@triton.jit
def _unit(x, eps, d):
    """x / rms(x) and 1 / rms(x) of every row."""
    scale = 1.0 / tl.sqrt(tl.sum(rounded_product(x, x), axis=2, keep_dims=True) / d + tl.cast(eps, tl.float32))
    return x * scale, scale


@triton.jit
def _weight(w, d, WIDTH: tl.constexpr):
    c = tl.arange(0, WIDTH)[None, None, :]
    return tl.load(w + c, mask=c < d, other=0.0)


@triton.jit
def _prepared(
    x_ptr, w_ptr, cos_ptr, sin_ptr, eps, b, h, s, t, sb, st, ss, sh, S, T, d,
    UNIT: tl.constexpr, TILES: tl.constexpr, ROWS: tl.constexpr, FRAMES: tl.constexpr, WIDTH: tl.constexpr,
    NORM: tl.constexpr, ROPE: tl.constexpr,
):  # fmt: skip
    """Queries or keys after norm and rotation, in the dtype of the products."""
    x = _load(x_ptr, b, h, s, t, sb, st, ss, sh, S, T, d, UNIT, WIDTH)
    if NORM:
        x = _unit(x, eps, d)[0] * _weight(w_ptr, d, WIDTH)
    if ROPE:
        cos, sin = _tables(cos_ptr, sin_ptr, T, d, ROWS, FRAMES, WIDTH)
        x = _rotate(x, cos, sin, TILES, ROWS, WIDTH)
    return x.to(x_ptr.dtype.element_ty)


@triton.jit
def _store_gradient(
    g_ptr, dx, x_ptr, w_ptr, partial_ptr, cos_ptr, sin_ptr, eps, b, h, s, t, sb, st, ss, sh, gb, gt, gs, gh, S, T, d,
    UNIT: tl.constexpr, TILES: tl.constexpr, ROWS: tl.constexpr, FRAMES: tl.constexpr, WIDTH: tl.constexpr,
    NORM: tl.constexpr, ROPE: tl.constexpr,
):  # fmt: skip
    """The way back through _prepared; x is read again, from cache, rather than kept in registers."""
    if ROPE:
        cos, sin = _tables(cos_ptr, sin_ptr, T, d, ROWS, FRAMES, WIDTH)
        dx = _rotate(dx, cos, -sin, TILES, ROWS, WIDTH)
    if NORM:
        unit, scale = _unit(_load(x_ptr, b, h, s, t, sb, st, ss, sh, S, T, d, UNIT, WIDTH), eps, d)
        c = tl.arange(0, WIDTH)
        sums = tl.sum(tl.sum(rounded_product(dx, unit), axis=1), axis=0)
        tl.store(partial_ptr + tl.program_id(0).to(tl.int64) * d + c, sums, mask=c < d)
        dx = dx * _weight(w_ptr, d, WIDTH)
        dx = scale * (dx - unit * (tl.sum(rounded_product(dx, unit), axis=2, keep_dims=True) / d))
    _store(g_ptr, dx, b, h, s, t, gb, gt, gs, gh, S, T, d, UNIT, WIDTH)


@triton.jit
def _dot(a, b):
    """a b of every tile; a single one as plain matrices, whose layouts spill less than batched ones."""
    if a.shape[0] == 1:
        x = tl.reshape(a, (a.shape[1], a.shape[2]))
        y = tl.reshape(b, (b.shape[1], b.shape[2]))
        product = tl.dot(x, y, input_precision="ieee")
        return tl.reshape(product, (1, a.shape[1], b.shape[2]))
    else:
        return tl.dot(a, b, input_precision="ieee")


@triton.jit
def _softmax(
    q, k, bias, mask, b, h, T, scale,
    ROWS: tl.constexpr, FRAMES: tl.constexpr, BIAS: tl.constexpr, MASK: tl.constexpr, CAUSAL: tl.constexpr,
):  # fmt: skip
    """Weights [TILES, ROWS, ROWS]; rows of different positions do not see each other."""
    logits = _dot(q, tl.permute(k, (0, 2, 1))) * tl.cast(scale, tl.float32)
    i = tl.arange(0, ROWS)[None, :, None]
    j = tl.arange(0, ROWS)[None, None, :]
    t, u = i % FRAMES, j % FRAMES
    seen = (i // FRAMES == j // FRAMES) & (u < T)
    if CAUSAL:
        seen = seen & (u <= t)
    if MASK:
        seen = seen & (tl.load(mask + b * T + u, mask=u < T, other=0) != 0)
    if BIAS:
        logits += tl.load(bias + (h * T + t) * T + u, mask=(t < T) & (u < T), other=0.0)
    logits = tl.where(seen, logits, float("-inf"))
    top = tl.max(logits, axis=2, keep_dims=True)
    # A query that sees no key: -inf minus -inf would be NaN.
    weights = tl.exp(logits - tl.where(top == float("-inf"), 0.0, top))
    total = tl.sum(weights, axis=2, keep_dims=True)
    return weights / tl.where(total == 0.0, 1.0, total)


@triton.jit
def forward_kernel(
    q_ptr, k_ptr, v_ptr, out_ptr, bias_ptr, mask_ptr, qw_ptr, kw_ptr, cos_ptr, sin_ptr,
    q_b, q_t, q_s, q_h, k_b, k_t, k_s, k_h, v_b, v_t, v_s, v_h, o_b, o_t, o_s, o_h,
    S, heads, T, scale, eps, d: tl.constexpr,
    UNIT: tl.constexpr, TILES: tl.constexpr, ROWS: tl.constexpr, FRAMES: tl.constexpr, WIDTH: tl.constexpr,
    BIAS: tl.constexpr, MASK: tl.constexpr, CAUSAL: tl.constexpr, NORM: tl.constexpr, ROPE: tl.constexpr,
):  # fmt: skip
    b, h, s, t = _place(S, heads, TILES, ROWS, FRAMES)
    q = _prepared(
        q_ptr, qw_ptr, cos_ptr, sin_ptr, eps, b, h, s, t, q_b, q_t, q_s, q_h, S, T, d,
        UNIT, TILES, ROWS, FRAMES, WIDTH, NORM, ROPE,
    )  # fmt: skip
    k = _prepared(
        k_ptr, kw_ptr, cos_ptr, sin_ptr, eps, b, h, s, t, k_b, k_t, k_s, k_h, S, T, d,
        UNIT, TILES, ROWS, FRAMES, WIDTH, NORM, ROPE,
    )  # fmt: skip
    element = q_ptr.dtype.element_ty
    v = _load(v_ptr, b, h, s, t, v_b, v_t, v_s, v_h, S, T, d, UNIT, WIDTH).to(element)
    weights = _softmax(q, k, bias_ptr, mask_ptr, b, h, T, scale, ROWS, FRAMES, BIAS, MASK, CAUSAL)
    out = _dot(weights.to(element), v)
    _store(out_ptr, out, b, h, s, t, o_b, o_t, o_s, o_h, S, T, d, UNIT, WIDTH)


@triton.jit
def backward_kernel(
    dout_ptr, q_ptr, k_ptr, v_ptr, dq_ptr, dk_ptr, dv_ptr, bias_ptr, mask_ptr, qw_ptr, kw_ptr, cos_ptr, sin_ptr,
    dbias_ptr, dqw_ptr, dkw_ptr,
    o_b, o_t, o_s, o_h, q_b, q_t, q_s, q_h, k_b, k_t, k_s, k_h, v_b, v_t, v_s, v_h, g_b, g_t, g_s, g_h,
    S, heads, T, scale, eps, d: tl.constexpr,
    UNIT: tl.constexpr, TILES: tl.constexpr, ROWS: tl.constexpr, FRAMES: tl.constexpr, WIDTH: tl.constexpr,
    BIAS: tl.constexpr, MASK: tl.constexpr, CAUSAL: tl.constexpr, NORM: tl.constexpr, ROPE: tl.constexpr,
):  # fmt: skip
    b, h, s, t = _place(S, heads, TILES, ROWS, FRAMES)
    q = _prepared(
        q_ptr, qw_ptr, cos_ptr, sin_ptr, eps, b, h, s, t, q_b, q_t, q_s, q_h, S, T, d,
        UNIT, TILES, ROWS, FRAMES, WIDTH, NORM, ROPE,
    )  # fmt: skip
    k = _prepared(
        k_ptr, kw_ptr, cos_ptr, sin_ptr, eps, b, h, s, t, k_b, k_t, k_s, k_h, S, T, d,
        UNIT, TILES, ROWS, FRAMES, WIDTH, NORM, ROPE,
    )  # fmt: skip
    element = q_ptr.dtype.element_ty
    weights = _softmax(q, k, bias_ptr, mask_ptr, b, h, T, scale, ROWS, FRAMES, BIAS, MASK, CAUSAL)
    dout = _load(dout_ptr, b, h, s, t, o_b, o_t, o_s, o_h, S, T, d, UNIT, WIDTH).to(element)
    dv = _dot(tl.permute(weights, (0, 2, 1)).to(element), dout)
    _store(dv_ptr, dv, b, h, s, t, g_b, g_t, g_s, g_h, S, T, d, UNIT, WIDTH)
    v = _load(v_ptr, b, h, s, t, v_b, v_t, v_s, v_h, S, T, d, UNIT, WIDTH).to(element)
    dweights = _dot(dout, tl.permute(v, (0, 2, 1)))
    dlogits = rounded_product(weights, dweights - tl.sum(rounded_product(weights, dweights), axis=2, keep_dims=True))
    if BIAS:
        i, j = tl.arange(0, ROWS)[:, None], tl.arange(0, ROWS)[None, :]
        at = dbias_ptr + (tl.program_id(0).to(tl.int64) * ROWS + i) * ROWS + j
        tl.store(at, tl.sum(dlogits, axis=0))
    dlogits = (dlogits * tl.cast(scale, tl.float32)).to(element)
    if ROWS > 32:  # from cache, rather than kept in registers that spill
        k = _prepared(
            k_ptr, kw_ptr, cos_ptr, sin_ptr, eps, b, h, s, t, k_b, k_t, k_s, k_h, S, T, d,
            UNIT, TILES, ROWS, FRAMES, WIDTH, NORM, ROPE,
        )  # fmt: skip
    dq = _dot(dlogits, k)
    _store_gradient(
        dq_ptr, dq, q_ptr, qw_ptr, dqw_ptr, cos_ptr, sin_ptr, eps, b, h, s, t, q_b, q_t, q_s, q_h, g_b, g_t, g_s, g_h,
        S, T, d, UNIT, TILES, ROWS, FRAMES, WIDTH, NORM, ROPE,
    )  # fmt: skip
    if ROWS > 32:  # from cache, rather than kept in registers that spill
        q = _prepared(
            q_ptr, qw_ptr, cos_ptr, sin_ptr, eps, b, h, s, t, q_b, q_t, q_s, q_h, S, T, d,
            UNIT, TILES, ROWS, FRAMES, WIDTH, NORM, ROPE,
        )  # fmt: skip
    dk = _dot(tl.permute(dlogits, (0, 2, 1)), q)
    _store_gradient(
        dk_ptr, dk, k_ptr, kw_ptr, dkw_ptr, cos_ptr, sin_ptr, eps, b, h, s, t, k_b, k_t, k_s, k_h, g_b, g_t, g_s, g_h,
        S, T, d, UNIT, TILES, ROWS, FRAMES, WIDTH, NORM, ROPE,
    )  # fmt: skip


def _flags(config: TileConfig, options: Options) -> dict[str, int | bool]:
    bias, mask, q_weight, _, cos, _, causal, _, _ = options
    return {
        "TILES": config.tiles,
        "ROWS": config.rows,
        "FRAMES": config.frames,
        "WIDTH": config.width,
        "BIAS": bias is not None,
        "MASK": mask is not None,
        "CAUSAL": causal,
        "NORM": q_weight is not None,
        "ROPE": cos is not None,
    }


def _as_positions(mask: Tensor | None, *tensors: Tensor) -> tuple[Tensor, ...]:
    """Samples of one position each, a model's (B * S, T, C), as the positions of one sample: a program takes several.

    A mask stays with its sample.
    """
    if mask is not None or tensors[0].shape[2] != 1:
        return tensors
    return tuple(x.transpose(0, 2) for x in tensors)


def _programs(config: TileConfig, q: Tensor) -> int:
    return q.shape[0] * triton.cdiv(q.shape[2], config.positions) * q.shape[3]


def _launch_forward(q: Tensor, k: Tensor, v: Tensor, *options) -> Tensor:
    out = fake_forward(q, k, v)
    if out.numel() == 0:
        return out
    bias, mask, qw, kw, cos, sin, _, scale, eps = options
    rows = _as_positions(mask, q, k, v, out)
    _, frames, positions, heads, d = rows[0].shape
    config = tile_config(frames, d, q.element_size(), backward=False, fused=qw is not None or cos is not None)
    unit, strides = row_strides(rows)
    tensors = [q if x is None else x for x in (bias, mask, qw, kw, cos, sin)]
    forward_kernel[(_programs(config, rows[0]),)](
        *rows, *tensors, *strides, positions, heads, frames, scale, eps, d, unit,
        **_flags(config, options), num_warps=config.num_warps,
    )  # fmt: skip
    return out


def _run_backward(dout: Tensor, parts, gradients, options) -> tuple[Tensor, Tensor, Tensor]:
    """Writes the gradients of q, k, v (equal strides) and returns those of bias and norm weights."""
    bias, mask, qw, kw, cos, sin, _, scale, eps = options
    dout, q, k, v, *gradients = _as_positions(mask, dout, *parts, *gradients)
    _, frames, positions, heads, d = q.shape
    config = tile_config(frames, d, q.element_size(), backward=True, fused=qw is not None or cos is not None)
    programs = _programs(config, q) if q.numel() else 0
    rows = config.rows
    partials = [
        q.new_empty((programs, rows, rows) if bias is not None else 0, dtype=torch.float32),
        *(q.new_empty((programs, d) if w is not None else 0, dtype=torch.float32) for w in (qw, kw)),
    ]
    if programs:
        unit, strides = row_strides((dout, q, k, v, gradients[0]))
        tensors = [q if x is None else x for x in (bias, mask, qw, kw, cos, sin)]
        backward_kernel[(programs,)](
            dout, q, k, v, *gradients, *tensors, *partials, *strides, positions, heads, frames, scale, eps, d, unit,
            **_flags(config, options), num_warps=config.num_warps,
        )  # fmt: skip
    dbias, dqw, dkw = partials
    if bias is not None:
        packed = rows // config.frames
        blocks = dbias.view(-1, heads, packed, config.frames, packed, config.frames).sum(0)
        dbias = sum(blocks[:, i, :, i] for i in range(packed))[:, :frames, :frames].contiguous()
    return dbias, *(w.sum(0) if w.dim() == 2 else w for w in (dqw, dkw))


def _launch_backward(dout: Tensor, q: Tensor, k: Tensor, v: Tensor, *options) -> tuple[Tensor, ...]:
    gradients = tuple(q.new_empty(q.shape) for _ in range(3))
    return (*gradients, *_run_backward(dout, (q, k, v), gradients, options))


def _launch_backward_packed(dout: Tensor, qkv: Tensor, *options) -> tuple[Tensor, ...]:
    gradient = qkv.new_empty(qkv.shape)
    return (gradient, *_run_backward(dout, qkv.unbind(3), gradient.unbind(3), options))


_OPTIONS = (
    "Tensor? bias, Tensor? mask, Tensor? q_weight, Tensor? k_weight, Tensor? cos, Tensor? sin, "
    "bool causal, float scale, float eps"
)
_library.define_triton(
    f"temporal_attention_forward(Tensor q, Tensor k, Tensor v, {_OPTIONS}) -> Tensor", _launch_forward, fake_forward
)
_library.define_triton(
    f"temporal_attention_backward(Tensor dout, Tensor q, Tensor k, Tensor v, {_OPTIONS}) -> "
    "(Tensor dq, Tensor dk, Tensor dv, Tensor dbias, Tensor dq_weight, Tensor dk_weight)",
    _launch_backward,
    fake_backward,
)
_library.define_triton(
    f"temporal_attention_backward_packed(Tensor dout, Tensor qkv, {_OPTIONS}) -> "
    "(Tensor dqkv, Tensor dbias, Tensor dq_weight, Tensor dk_weight)",
    _launch_backward_packed,
    fake_backward_packed,
)


def forward(q: Tensor, k: Tensor, v: Tensor, options: Options) -> Tensor:
    return torch.ops.vdiff_fast_triton.temporal_attention_forward.default(q, k, v, *options)


def backward(dout: Tensor, q: Tensor, k: Tensor, v: Tensor, options: Options) -> tuple[Tensor, ...]:
    return torch.ops.vdiff_fast_triton.temporal_attention_backward.default(dout, q, k, v, *options)


def backward_packed(dout: Tensor, qkv: Tensor, options: Options) -> tuple[Tensor, ...]:
    return torch.ops.vdiff_fast_triton.temporal_attention_backward_packed.default(dout, qkv, *options)
