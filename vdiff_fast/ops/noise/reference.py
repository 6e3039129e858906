"""Standard normals of a counter: Philox4x32-10 (Salmon et al. 2011) and Box-Muller, e counted with channels last."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from vdiff_fast import _philox


def noise(
    shape: Sequence[int],
    seed: int | Tensor,
    *,
    sample_offset: int | Tensor | None = 0,
    stream: int | Tensor | None = 0,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> Tensor:
    if not isinstance(seed, Tensor):
        seed = torch.full((), seed, dtype=torch.int64, device=device)
    return shaped(normals(seed, sample_offset, stream, shape[0], math.prod(shape[1:]), dtype), shape)


def normals(
    seed: Tensor,
    sample_offset: int | Tensor | None,
    stream: int | Tensor | None,
    batch: int,
    per_sample: int,
    dtype: torch.dtype,
) -> Tensor:
    """(batch, per_sample) in the order of e; None stands for 0."""
    return _philox.normals(
        batch, per_sample, seed, 0 if sample_offset is None else sample_offset, 0 if stream is None else stream
    ).to(dtype)


def shaped(normals: Tensor, shape: Sequence[int]) -> Tensor:
    """(B, n) as a view of `shape`: for rank 4 and 5 the elements count with the channel axis last."""
    if len(shape) not in (4, 5):
        return normals.reshape(tuple(shape))
    return normals.reshape((shape[0], *shape[2:], shape[1])).movedim(-1, 1)
