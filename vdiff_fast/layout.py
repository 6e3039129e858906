"""One memory layout for video: shape (B, C, T, H, W), memory (B, T, H, W, C).

Everything here is a view or, where a tensor is in neither of the two native layouts, one copy.
"""

from __future__ import annotations

import torch
from torch import Tensor


def is_channels_last(x: Tensor) -> bool:
    """True where the memory of x (B, C, ...) is (B, ..., C); strides of size-1 dimensions do not matter."""
    return x.dim() >= 3 and x.movedim(1, -1).is_contiguous()


def is_native(x: Tensor) -> bool:
    """True where kernels read x as it is: contiguous, or channels-last of rank 4 or 5."""
    return x.is_contiguous() or (x.dim() in (4, 5) and is_channels_last(x))


def native(x: Tensor) -> Tensor:
    """x itself where its layout is native, else one copy, channels-last where channels have stride 1."""
    if is_native(x):
        return x
    return channels_last(x) if x.dim() in (4, 5) and x.stride(1) == 1 else x.contiguous()


def channels_last(x: Tensor) -> Tensor:
    """x (B, C, ...) in the memory of (B, ..., C): a view, or one copy. vmap knows no `contiguous(memory_format=)`."""
    return x.movedim(1, -1).contiguous().movedim(-1, 1)


def laid_out_like(gradient: Tensor, x: Tensor) -> Tensor:
    """The gradient in the memory layout of x: gradients arrive expanded or in another layout, x decides."""
    if gradient.stride() == x.stride():
        return gradient
    if x.is_contiguous():
        return gradient.contiguous()
    if is_channels_last(x):
        return channels_last(gradient)
    return torch.empty_like(x, dtype=gradient.dtype).copy_(gradient)


def canonical(x: Tensor) -> Tensor:
    """x (B, C, H, W) or (B, C, T, H, W) in channels-last memory with the strides torch gives that layout.

    With B*T = 1 or H*W = 1 a view can carry strides of size-1 dimensions that make torch answer in NCHW. A view where
    x is channels-last already, else one copy.
    """
    if is_channels_last(x):
        moved = x.movedim(1, -1)
        strides = [1] * moved.dim()
        for i in range(moved.dim() - 2, -1, -1):
            strides[i] = strides[i + 1] * moved.shape[i + 1]
        if list(moved.stride()) == strides:
            return x
        return torch.as_strided(moved, moved.shape, strides).movedim(-1, 1)
    return channels_last(x)


def as_frames(x: Tensor) -> Tensor:
    """(B, C, T, H, W) in channels-last memory as images (B*T, C, H, W), channels-last: a view."""
    b, c, t, h, w = x.shape
    return x.permute(0, 2, 3, 4, 1).reshape(b * t, h, w, c).permute(0, 3, 1, 2)


def as_video(frames: Tensor, batch: int, length: int) -> Tensor:
    """Images (B*T, C, H, W) in channels-last memory as a video (B, C, T, H, W): a view.

    Both B and T are given, since a batch of nothing has no frames to count.
    """
    _, c, h, w = frames.shape
    return frames.permute(0, 2, 3, 1).reshape(batch, length, h, w, c).permute(0, 4, 1, 2, 3)


def as_tokens(x: Tensor) -> Tensor:
    """(B, C, T, H, W) in channels-last memory as tokens (B, T, S, C) with S = H*W: a view."""
    b, c, t, h, w = x.shape
    return x.permute(0, 2, 3, 4, 1).reshape(b, t, h * w, c)


def from_tokens(tokens: Tensor, height: int, width: int) -> Tensor:
    """Tokens (B, T, S, C) as a video (B, C, T, H, W) in channels-last memory: a view."""
    b, t, _, c = tokens.shape
    return tokens.reshape(b, t, height, width, c).permute(0, 4, 1, 2, 3)
