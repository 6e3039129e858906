"""What every video network checks of its inputs: typed errors that name the value, the rule and the fix."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor


class InputSizes(Protocol):
    """The part of a network's configuration that its inputs must fit."""

    @property
    def in_channels(self) -> int: ...
    @property
    def num_classes(self) -> int | None: ...
    @property
    def context_dim(self) -> int | None: ...
    @property
    def cond_channels(self) -> int: ...
    @property
    def interval(self) -> bool: ...


def check_video(x: Tensor, channels: int, multiples: tuple[int, int], reason: str = "") -> None:
    """x is (B, channels, T, H, W), floating point, with H and W multiples of what the network halves or cuts.

    Raises:
        TypeError: x holds integers.
        ValueError: another shape; the message names the next size that fits.
    """
    if not x.is_floating_point():
        raise TypeError(f"x must be floating point in [-1, 1], got {x.dtype}; use x.float() / 127.5 - 1")
    if x.dim() != 5 or x.shape[1] != channels:
        raise ValueError(f"x must be (B, {channels}, T, H, W), got {tuple(x.shape)}")
    if 0 in x.shape[2:]:  # torch's convolutions fail on it with words about their padding
        raise ValueError(f"x must have at least one frame of one pixel, got {tuple(x.shape)}")
    height, width = x.shape[3:]
    for name, size, multiple in (("height", height, multiples[0]), ("width", width, multiples[1])):
        if size % multiple:
            raise ValueError(
                f"frame {height}x{width}: {name} must be a multiple of {multiple}{reason}; "
                f"use {-(-size // multiple) * multiple} (--size), or pad the frames"
            )


def check_conditions(
    config: InputSizes,
    x: Tensor,
    t: Tensor,
    y: Tensor | None,
    context: Tensor | None,
    cond: Tensor | None,
    r: Tensor | None = None,
) -> None:
    """t (B,), r (B,), y (B,), context (B, L, D), cond (B, K, T, H, W), each only where the network was built for it.

    Raises:
        ValueError: an input that the network lacks, or another shape.
    """
    batch, _, *space = x.shape
    if t.shape != (batch,):
        raise ValueError(f"t must be ({batch},), one per video, got {tuple(t.shape)}")
    if r is not None and r.shape != (batch,):
        raise ValueError(f"r must be ({batch},), as t, got {tuple(r.shape)}")
    for name, value, known, field in (
        ("r", r, config.interval, "interval"),
        ("y", y, config.num_classes, "num_classes"),
        ("context", context, config.context_dim, "context_dim"),
        ("cond", cond, config.cond_channels, "cond_channels"),
    ):
        if value is not None and not known:
            raise ValueError(f"{name} was given, but the model was built without it; set {field}")
    if y is not None and y.shape != (batch,):
        raise ValueError(f"y must be ({batch},), got {tuple(y.shape)}")
    if context is not None and (
        context.dim() != 3 or (context.shape[0], context.shape[2]) != (batch, config.context_dim)
    ):
        raise ValueError(f"context must be ({batch}, L, {config.context_dim}), got {tuple(context.shape)}")
    if cond is not None and cond.shape != (batch, config.cond_channels, *space):
        raise ValueError(
            f"cond must be {(batch, config.cond_channels, *space)}, known frames and their mask, "
            f"got {tuple(cond.shape)}"
        )


def check_context_mask(mask: Tensor | None, context: Tensor | None, keys_values: Sequence[Tensor] | None) -> None:
    """mask (B, L) bool fits the context (B, L, D), or the keys and values made of it.

    Raises:
        TypeError: the mask is not bool.
        ValueError: a mask without a context, or of another shape.
    """
    if mask is None:
        return
    if mask.dtype != torch.bool:
        raise TypeError(f"context_mask must be bool (True: the token is seen), got {mask.dtype}; use mask.bool()")
    masked = context if not keys_values else keys_values[0]
    if masked is None:
        raise ValueError("context_mask was given without a context; give both, or neither")
    if mask.shape != masked.shape[:2]:
        raise ValueError(f"context_mask must be {tuple(masked.shape[:2])}, as the context, got {tuple(mask.shape)}")
