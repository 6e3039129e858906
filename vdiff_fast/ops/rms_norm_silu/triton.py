"""Launches of the Triton kernels, registered as operators."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vdiff_fast import _library
from vdiff_fast.ops.rms_norm_silu.config import TileConfig, tile_config
from vdiff_fast.ops.rms_norm_silu.kernels_triton import backward_kernel, forward_kernel
from vdiff_fast.ops.rms_norm_silu.native import Backward, fake_backward, fake_forward

__all__ = ["backward", "backward_kernel", "forward", "forward_kernel"]


def _options(
    x: Tensor, weight: Tensor | None, scale: Tensor | None, shift: Tensor | None, silu: bool, backward: bool
) -> tuple[dict[str, int | bool], TileConfig, int]:
    """Sizes and flags of a launch, its tile, and the number of segments per sample."""
    scale_frames, shift_frames = (1 if t is None else t.shape[1] for t in (scale, shift))
    segments, positions = max(scale_frames, shift_frames), x.shape[2:].numel()
    channels_last = not x.is_contiguous()
    tile = tile_config(x.shape[1], x.shape[0] * segments, positions // segments, channels_last, backward)
    options: dict[str, int | bool] = {
        "channels": x.shape[1],
        "positions": positions,
        "length": positions // segments,
        "segments_per_sample": segments,
        "segments_per_scale": segments // scale_frames,
        "segments_per_shift": segments // shift_frames,
        "chunks": tile.chunks(positions // segments),
        "HAS_WEIGHT": weight is not None,
        "HAS_SCALE": scale is not None,
        "HAS_SHIFT": shift is not None,
        "SILU": silu,
        "CHANNELS_LAST": channels_last,
        "ONE_READ": tile.block_c >= x.shape[1],
        "FAR": not channels_last and tile.block_c * positions >= 2**31,
        "BLOCK_C": tile.block_c,
        "BLOCK_R": tile.block_r,
        "num_warps": tile.num_warps,
    }
    return options, tile, segments


def _launch_forward(
    x: Tensor, weight: Tensor | None, eps: float, scale: Tensor | None, shift: Tensor | None, silu: bool
) -> tuple[Tensor, Tensor]:
    y, rstd = fake_forward(x, weight, eps, scale, shift, silu)
    if x.numel() == 0:
        return y, rstd.zero_()
    options, _, segments = _options(x, weight, scale, shift, silu, backward=False)
    vectors = (x if t is None else t for t in (weight, scale, shift))  # an absent tensor's pointer is not touched
    grid = (x.shape[0] * segments * int(options["chunks"]),)
    forward_kernel[grid](x, *vectors, y, rstd, eps=eps, **options)
    return y, rstd


def _launch_backward(
    dy: Tensor,
    x: Tensor,
    weight: Tensor | None,
    rstd: Tensor,
    scale: Tensor | None,
    shift: Tensor | None,
    silu: bool,
) -> Backward:
    dx, dweight, dscale, dshift = fake_backward(dy, x, weight, rstd, scale, shift, silu)
    if x.numel() == 0:
        return dx, dweight.zero_(), dscale.zero_(), dshift.zero_()
    options, tile, segments = _options(x, weight, scale, shift, silu, backward=True)
    batch, channels, chunks = x.shape[0], x.shape[1], int(options["chunks"])
    partial = x.new_empty((2, batch, segments * chunks, channels), dtype=torch.float32)
    weight_ptr, scale_ptr, shift_ptr = (x if t is None else t for t in (weight, scale, shift))
    backward_kernel[(batch * segments * chunks,)](
        dy, x, weight_ptr, rstd, scale_ptr, shift_ptr, dx, partial[0], partial[1], tiles=tile.tiles, **options
    )
    sums = partial.view(2, batch, segments, chunks, channels).sum(3, dtype=_wide(x))
    return dx, *_vector_gradients(sums, dweight, dscale, dshift, weight, scale, shift)


def _wide(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float32 else torch.float32


def _vector_gradients(
    sums: Tensor,
    dweight: Tensor,
    dscale: Tensor,
    dshift: Tensor,
    weight: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """From the sums (B, segments, C) of dp and dp*xhat; a few thousand numbers, so plain torch."""
    dp, dp_xhat = sums
    if weight is not None:
        gained = dp_xhat if scale is None else dp_xhat * (1 + scale.to(sums.dtype))
        dweight = gained.sum((0, 1)).to(weight.dtype)
    if scale is not None:
        weighted = dp_xhat if weight is None else dp_xhat * weight.to(sums.dtype)
        dscale = _to_frames(weighted, scale)
    if shift is not None:
        dshift = _to_frames(dp, shift)
    return dweight, dscale, dshift


def _to_frames(gradient: Tensor, value: Tensor) -> Tensor:
    gradient = gradient if value.shape[1] == gradient.shape[1] else gradient.sum(1, keepdim=True)
    return gradient.to(value.dtype, memory_format=torch.contiguous_format, copy=True)


_library.define_triton(
    "rms_norm_silu_forward(Tensor x, Tensor? weight, float eps, Tensor? scale, Tensor? shift, bool silu) "
    "-> (Tensor, Tensor)",
    _launch_forward,
    fake_forward,
)
_library.define_triton(
    "rms_norm_silu_backward(Tensor dy, Tensor x, Tensor? weight, Tensor rstd, Tensor? scale, Tensor? shift, "
    "bool silu) -> (Tensor, Tensor, Tensor, Tensor)",
    _launch_backward,
    fake_backward,
)


def forward(*args: Any) -> tuple[Tensor, Tensor]:
    return torch.ops.vdiff_fast_triton.rms_norm_silu_forward.default(*args)


def backward(*args: Any) -> Backward:
    return torch.ops.vdiff_fast_triton.rms_norm_silu_backward.default(*args)
