"""What the norms over channels share: checks of per-channel vectors, and shapes their kernels take."""

from __future__ import annotations

from torch import Tensor

from vdiff_fast.layout import channels_last


def check_vector(op: str, name: str, value: Tensor, x: Tensor) -> None:
    """Raises TypeError for an integer vector, ValueError for one on another device than x."""
    if not value.is_floating_point():
        raise TypeError(f"{op}: {name} must be floating point, got {value.dtype}")
    if value.device != x.device:
        raise ValueError(f"{op}: {name} is on {value.device}, x on {x.device}; move {name}")


def affine(op: str, name: str, value: Tensor | None, x: Tensor, channels: int) -> Tensor | None:
    """weight or bias, (C,)."""
    if value is None:
        return None
    check_vector(op, name, value, x)
    if value.shape != (channels,):
        raise ValueError(f"{op}: {name} must have shape ({channels},), got {tuple(value.shape)}")
    return value.contiguous()


def modulation(op: str, name: str, value: Tensor | None, x: Tensor, channels: int) -> Tensor | None:
    """scale or shift as (B, F, C), F = 1 or T: from (B, C), (B, T, C), or x's rank with size-1 space."""
    if value is None:
        return None
    check_vector(op, name, value, x)
    b, video = x.shape[0], x.dim() == 5
    frames = x.shape[2] if video else 1
    if value.shape == (b, channels):
        return value[:, None].contiguous()
    if video and value.shape in ((b, frames, channels), (b, 1, channels)):
        return value.contiguous()
    if value.shape == (b, channels, *[1] * (x.dim() - 2)):
        return value.reshape(b, 1, channels).contiguous()  # a view with the strides of a chunk otherwise
    if video and value.shape == (b, channels, frames, 1, 1):
        return value.reshape(b, channels, frames).transpose(1, 2).contiguous()
    wanted = f"({b}, {channels})" + (f" or ({b}, {frames}, {channels})" if video else "")
    raise ValueError(f"{op}: {name} must have shape {wanted}, got {tuple(value.shape)}")


def three_axes(x: Tensor) -> Tensor:
    """x as it is for the ranks that kernels know, 3 to 5; else (B, C, S)."""
    if 3 <= x.dim() <= 5:
        return x
    return x[..., None] if x.dim() == 2 else x.flatten(2)


def for_reference(value: Tensor | None, x: Tensor) -> Tensor | None:
    """(B, F, C) as the references take it: (B, C) where x has no frames."""
    return value if value is None or x.dim() == 5 else value[:, 0]


def laid_out(t: Tensor, contiguous: bool) -> Tensor:
    """t contiguous, or channels-last: a view where it is already."""
    return t.contiguous() if contiguous else channels_last(t)
