"""What the adaLN ops share: tokens (B, ..., D), and the vectors of width D that modulate runs of them.

A vector is (B, D), one per sample; (B, F, D), one per run of N/F of the sample's N tokens (F = T: per frame, F = N: per
token); or x's rank, its middle axes x's own up to some axis and 1 after it. Kernels take all of them as (B, F, D) and
read them by stride, so chunks of one Linear's output are never copied.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from vdiff_fast.ops._common.channel_vectors import affine, check_vector


def check_tokens(op: str, name: str, x: Tensor) -> None:
    """Raises TypeError for integers, ValueError where x is not (B, ..., D)."""
    if not x.is_floating_point():
        raise TypeError(f"{op}: {name} must be floating point, got {x.dtype}")
    if x.dim() < 2:
        raise ValueError(f"{op}: {name} must be (B, ..., D), got shape {tuple(x.shape)}")


def like_tokens(op: str, name: str, value: Tensor, x: Tensor) -> Tensor:
    """A second activation of x's shape, in x's dtype."""
    check_vector(op, name, value, x)
    if value.shape != x.shape:
        raise ValueError(f"{op}: {name} must have the residual's shape {tuple(x.shape)}, got {tuple(value.shape)}")
    return value if value.dtype == x.dtype else value.to(x.dtype)


def tokens(x: Tensor) -> Tensor:
    """(B, ..., D) as contiguous (B, N, D): a view where x is contiguous."""
    x = x.contiguous()
    return x.unsqueeze(1) if x.dim() == 2 else x.flatten(1, -2)


def _fits(runs: Sequence[int], axes: Sequence[int]) -> bool:
    """Whether a vector's middle axes fit x's."""
    if len(runs) == 0:
        return True
    if len(runs) == 1:
        count = math.prod(axes)
        return runs[0] == count or (runs[0] > 0 and count % runs[0] == 0)
    shared = 0
    while shared < len(runs) and shared < len(axes) and runs[shared] == axes[shared]:
        shared += 1
    return len(runs) == len(axes) and all(n == 1 for n in runs[shared:])


def modulation(op: str, name: str, value: Tensor, x: Tensor) -> Tensor:
    """The vector as (B, F, D) in x's dtype, unit stride in D: a view where it has both already."""
    check_vector(op, name, value, x)
    batch, width = x.shape[0], x.shape[-1]
    fits = value.dim() >= 2 and value.shape[0] == batch and value.shape[-1] == width
    if not fits or not _fits(value.shape[1:-1], x.shape[1:-1]):
        count = math.prod(x.shape[1:-1])
        raise ValueError(
            f"{op}: {name} must have shape ({batch}, {width}), or ({batch}, F, {width}) with F a divisor of the "
            f"{count} tokens, for x of shape {tuple(x.shape)}, got {tuple(value.shape)}"
        )
    if value.dtype != x.dtype:
        value = value.to(x.dtype)
    if value.dim() != 3:
        value = value.reshape(batch, math.prod(value.shape[1:-1]), width)
    return value if value.stride(-1) == 1 else value.contiguous()


def modulations(op: str, x: Tensor, **vectors: Tensor) -> list[Tensor]:
    """Every vector as (B, F, D) with one F: those of one vector a sample repeat by stride 0, others by a copy."""
    found = {name: modulation(op, name, value, x) for name, value in vectors.items()}
    fine = 1
    for value in found.values():
        fine = value.shape[1] if value.shape[1] != 1 and (fine == 1 or value.shape[1] > fine) else fine
    return [_repeated(op, name, value, fine) for name, value in found.items()]


def _repeated(op: str, name: str, value: Tensor, fine: int) -> Tensor:
    coarse = value.shape[1]
    if coarse == fine:
        return value
    if coarse == 1:
        return value.expand(-1, fine, -1)
    if fine % coarse:
        raise ValueError(f"{op}: {name} has {coarse} vectors a sample, which does not divide the {fine} of another")
    return value.repeat_interleave(fine // coarse, dim=1)


def wide_vector(op: str, name: str, value: Tensor | None, x: Tensor) -> Tensor | None:
    """weight or bias (D,) in the dtype that x is computed in."""
    value = affine(op, name, value, x, x.shape[-1])
    return None if value is None else value.to(wide_dtype(x))


def wide_dtype(x: Tensor) -> torch.dtype:
    """float32, and float64 for float64."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def row_statistics(x: Tensor) -> Tensor:
    """Memory for the mean's high and low part and rstd of every token of (B, N, D)."""
    return x.new_empty((3, x.shape[0] * x.shape[1]), dtype=wide_dtype(x))


def vector_like(value: Tensor) -> Tensor:
    """Memory for the gradient of a vector (B, F, D): contiguous whatever its strides."""
    return value.new_empty(value.shape)


def summed_over_runs(gradient: Tensor, runs: int) -> Tensor:
    """Of tokens (B, N, D) the sums of each of F runs, (B, F, D): the gradient of a vector that is added to its run."""
    return gradient.unflatten(1, (runs, gradient.shape[1] // max(runs, 1))).sum(2)


def over_tokens(value: Tensor, x: Tensor) -> Tensor:
    """The vector as a tensor that broadcasts against x (B, ..., D), for references."""
    value = value.to(x.dtype)
    if value.dim() == 2:
        return value.reshape(x.shape[0], *[1] * (x.dim() - 2), x.shape[-1])
    if value.dim() == x.dim() and (x.dim() > 3 or value.shape[1] in (1, x.shape[1])):
        return value
    if value.shape[1] in (1, x.shape[1]):
        return value.reshape(*value.shape[:2], *[1] * (x.dim() - 3), x.shape[-1])
    return value.repeat_interleave(math.prod(x.shape[1:-1]) // value.shape[1], dim=1).reshape(x.shape)
