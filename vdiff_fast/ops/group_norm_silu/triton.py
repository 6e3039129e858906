"""Launches of the Triton kernels, registered as operators."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vdiff_fast import _library
from vdiff_fast.ops.group_norm_silu import config
from vdiff_fast.ops.group_norm_silu.config import Geometry, Resident, Split
from vdiff_fast.ops.group_norm_silu.kernels_triton import (
    apply_kernel,
    backward_apply_kernel,
    backward_sums_kernel,
    combine_statistics_kernel,
    combine_sums_kernel,
    resident_backward_kernel,
    resident_forward_kernel,
    statistics_kernel,
)
from vdiff_fast.ops.group_norm_silu.native import Backward, Forward, fake_backward, fake_forward

__all__ = [
    "apply_kernel",
    "backward",
    "backward_apply_kernel",
    "backward_sums_kernel",
    "combine_statistics_kernel",
    "combine_sums_kernel",
    "forward",
    "resident_backward_kernel",
    "resident_forward_kernel",
    "statistics_kernel",
]


def _geometry(
    x: Tensor, x2: Tensor | None, num_groups: int, scale: Tensor | None, shift: Tensor | None, per_frame: bool
) -> Geometry:
    return config.geometry(
        tuple(x.shape),
        0 if x2 is None else x2.shape[1],
        num_groups,
        1 if scale is None else scale.shape[1],
        1 if shift is None else shift.shape[1],
        per_frame,
        channels_last=not (x.is_contiguous() and (x2 is None or x2.is_contiguous())),
    )


def _sizes(shape: Geometry) -> dict[str, int]:
    """The size arguments that all kernels over the activation share."""
    return {
        "C1": shape.channels,
        "C2": shape.channels2,
        "positions": shape.positions,
        "length": shape.length,
        "group_channels": shape.group_channels,
        "segments_per_sample": shape.segments_per_sample,
    }


def _modulation_sizes(shape: Geometry) -> dict[str, int]:
    return {
        "num_groups": shape.num_groups,
        "segments_per_scale": shape.segments_per_scale,
        "segments_per_shift": shape.segments_per_shift,
    }


def _affine_flags(
    weight: Tensor | None, bias: Tensor | None, scale: Tensor | None, shift: Tensor | None
) -> dict[str, bool]:
    named = {"HAS_WEIGHT": weight, "HAS_BIAS": bias, "HAS_SCALE": scale, "HAS_SHIFT": shift}
    return {name: t is not None for name, t in named.items()}


def _flags(x2: Tensor | None, add: Tensor | None, shape: Geometry) -> dict[str, bool]:
    return {"HAS_X2": x2 is not None, "HAS_ADD": add is not None, "CHANNELS_LAST": shape.channels_last}


def _tile_options(chosen: Resident | Split, shape: Geometry) -> dict[str, int]:
    options = {"BLOCK_C": chosen.tile.block_c, "BLOCK_R": chosen.tile.block_r, "num_warps": chosen.tile.num_warps}
    if isinstance(chosen, Resident):
        return options | {"slab_channels": chosen.groups * shape.group_channels, "BLOCK_K": chosen.block_k}
    return options | {
        "chunks": chosen.chunks(shape),
        "tiles": chosen.tiles,
        "segments_per_unit": shape.segments_per_unit,
    }


def _launch_forward(
    x: Tensor,
    x2: Tensor | None,
    num_groups: int,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    scale: Tensor | None,
    shift: Tensor | None,
    add: Tensor | None,
    per_frame: bool,
    silu: bool,
    chosen: Resident | Split | None = None,
) -> Forward:
    y, mean, rstd = fake_forward(x, x2, num_groups, weight, bias, eps, scale, shift, add, per_frame, silu)
    if y.numel() == 0:
        return y, mean.zero_(), rstd.zero_()
    shape = _geometry(x, x2, num_groups, scale, shift, per_frame)
    chosen = chosen or config.choose(shape, backward=False)
    # A kernel does not touch the pointer of an absent tensor; x stands for it.
    x2_ptr, weight_ptr, bias_ptr, scale_ptr, shift_ptr, add_ptr = (
        x if t is None else t for t in (x2, weight, bias, scale, shift, add)
    )
    source = (x, x2_ptr, weight_ptr, bias_ptr, scale_ptr, shift_ptr, add_ptr, y, mean, rstd)
    flags = _flags(x2, add, shape)
    options = (
        _sizes(shape) | _modulation_sizes(shape) | _affine_flags(weight, bias, scale, shift)
        | flags | {"SILU": silu} | _tile_options(chosen, shape)
    )  # fmt: skip
    if isinstance(chosen, Resident):
        resident_forward_kernel[(chosen.programs(shape),)](*source, eps=eps, **options)
        return y, mean, rstd
    partial_mean, partial_m2 = _partials(x, shape, chosen)
    statistics_kernel[(chosen.programs(shape),)](
        x, x2_ptr, add_ptr, partial_mean, partial_m2, **_sizes(shape), **flags, **_tile_options(chosen, shape)
    )
    combine_statistics_kernel[(shape.units * num_groups,)](
        x, x2_ptr, add_ptr, partial_mean, partial_m2, mean, rstd,
        **_sizes(shape), **flags, num_groups=num_groups, segments_per_unit=shape.segments_per_unit,
        chunks=chosen.chunks(shape), chunk_length=chosen.chunk, eps=eps, BLOCK=config.COMBINE_ENTRIES,
    )  # fmt: skip
    apply_kernel[(chosen.programs(shape),)](*source, **options)
    return y, mean, rstd


def _partials(x: Tensor, shape: Geometry, chosen: Split) -> tuple[Tensor, Tensor]:
    """Two float32 values per channel of each chunk."""
    rows = shape.segments * chosen.chunks(shape)
    first, second = x.new_empty((2, rows, shape.all_channels), dtype=torch.float32).unbind()
    return first, second


def _modulation_gradient(value: Tensor | None, x: Tensor, shape: Geometry, segments_per_row: int) -> Tensor:
    """Where the kernels write a gradient per segment: in its own dtype, in float32 if frames are still to be summed."""
    if value is None:
        return x.new_empty((0,))
    if segments_per_row == 1:
        return torch.empty_like(value)
    return value.new_empty((shape.samples, shape.segments_per_sample, shape.all_channels), dtype=torch.float32)


def _over_frames(gradient: Tensor, value: Tensor | None) -> Tensor:
    """Summed over the segments that share a row of scale or shift."""
    if value is None or gradient.shape == value.shape:
        return gradient
    return gradient.sum(1, keepdim=True).to(value.dtype)


def _launch_backward(
    dy: Tensor,
    x: Tensor,
    x2: Tensor | None,
    num_groups: int,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor,
    rstd: Tensor,
    scale: Tensor | None,
    shift: Tensor | None,
    add: Tensor | None,
    per_frame: bool,
    silu: bool,
    chosen: Resident | Split | None = None,
) -> Backward:
    if dy.numel() == 0:
        gradients = fake_backward(dy, x, x2, num_groups, weight, bias, mean, rstd, scale, shift, add, per_frame, silu)
        return tuple(g.zero_() for g in gradients)
    shape = _geometry(x, x2, num_groups, scale, shift, per_frame)
    chosen = chosen or config.choose(shape, backward=True)
    dx, dx2 = torch.empty_like(x), x.new_empty((0,)) if x2 is None else torch.empty_like(x2)
    wide = torch.float64 if x.dtype == torch.float32 else torch.float32
    affine = x.new_empty((2, shape.segments, shape.all_channels), dtype=wide)
    dscale = _modulation_gradient(scale, x, shape, shape.segments_per_scale)
    dshift = _modulation_gradient(shift, x, shape, shape.segments_per_shift)
    rows = shape.segments_per_sample * (chosen.chunks(shape) if isinstance(chosen, Split) else 1)
    dadd = x.new_empty((0,) if add is None else (shape.samples, rows, shape.all_channels), dtype=torch.float32)

    x2_ptr, weight_ptr, bias_ptr, scale_ptr, shift_ptr, add_ptr = (
        x if t is None else t for t in (x2, weight, bias, scale, shift, add)
    )
    source = (dy, x, x2_ptr, weight_ptr, bias_ptr, mean, rstd, scale_ptr, shift_ptr, add_ptr)
    vectors = (affine[1], affine[0], dscale, dshift)
    affine_flags = _affine_flags(weight, bias, scale, shift)
    options = (
        _sizes(shape) | _modulation_sizes(shape) | affine_flags
        | _flags(x2, add, shape) | {"SILU": silu} | _tile_options(chosen, shape)
    )  # fmt: skip
    if isinstance(chosen, Resident):
        resident_backward_kernel[(chosen.programs(shape),)](*source, dx, dx2, *vectors, dadd, **options)
    else:
        sums = _partials(x, shape, chosen)
        group_means = torch.empty_like(mean), torch.empty_like(mean)
        backward_sums_kernel[(chosen.programs(shape),)](*source, *sums, **options)
        combine_sums_kernel[(shape.units * num_groups,)](
            *sums, weight_ptr, bias_ptr, scale_ptr, shift_ptr, *group_means, *vectors,
            channels=shape.all_channels, length=shape.length, group_channels=shape.group_channels,
            segments_per_unit=shape.segments_per_unit, chunks=chosen.chunks(shape),
            **_modulation_sizes(shape), **affine_flags,
            BLOCK_D=config.COMBINE_CHANNELS, BLOCK_CHUNKS=config.COMBINE_CHUNKS,
        )  # fmt: skip
        backward_apply_kernel[(chosen.programs(shape),)](*source, *group_means, dx, dx2, dadd, **options)
    dbias, dweight = affine.sum(1)
    return (
        dx,
        dx2,
        x.new_empty((0,)) if weight is None else dweight.to(weight.dtype, copy=True),
        x.new_empty((0,)) if bias is None else dbias.to(bias.dtype, copy=True),
        _over_frames(dscale, scale),
        _over_frames(dshift, shift),
        x.new_empty((0,)) if add is None else dadd.sum(1).to(add.dtype),
    )


_library.define_triton(
    "group_norm_silu_forward(Tensor x, Tensor? x2, int num_groups, Tensor? weight, Tensor? bias, float eps, "
    "Tensor? scale, Tensor? shift, Tensor? add, bool per_frame, bool silu) -> (Tensor, Tensor, Tensor)",
    _launch_forward,
    fake_forward,
)
_library.define_triton(
    "group_norm_silu_backward(Tensor dy, Tensor x, Tensor? x2, int num_groups, Tensor? weight, Tensor? bias, "
    "Tensor mean, Tensor rstd, Tensor? scale, Tensor? shift, Tensor? add, bool per_frame, bool silu) "
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    _launch_backward,
    fake_backward,
)


def forward(*args: Any) -> Forward:
    return torch.ops.vdiff_fast_triton.group_norm_silu_forward.default(*args)


def backward(*args: Any) -> Backward:
    return torch.ops.vdiff_fast_triton.group_norm_silu_backward.default(*args)
