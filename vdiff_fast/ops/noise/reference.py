"""Standard normals of a counter: Philox4x32-10 (Salmon et al. 2011) and Box-Muller, e counted with channels last."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from vdiff_fast import _philox
from vdiff_fast.ops._common.frames import frame_arguments


def noise(
    shape: Sequence[int],
    seed: int | Tensor,
    *,
    sample_offset: int | Tensor | None = 0,
    stream: int | Tensor | None = 0,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    frame_correlation: float = 0.0,
    correlation_kind: str = "mixed",
) -> Tensor:
    if not isinstance(seed, Tensor):
        seed = torch.full((), seed, dtype=torch.int64, device=device)
    words = (seed, sample_offset, stream, shape[0], math.prod(shape[1:]), dtype)
    return shaped(normals(*words, *frame_arguments(shape, frame_correlation, correlation_kind)), shape)


def normals(
    seed: Tensor,
    sample_offset: int | Tensor | None,
    stream: int | Tensor | None,
    batch: int,
    per_sample: int,
    dtype: torch.dtype,
    frames: int = 0,
    shared: float = 0.0,
    own: float = 1.0,
    progressive: bool = False,
) -> Tensor:
    """(batch, per_sample) in the order of e; None stands for 0.

    Frames z[f] = shared s + own n[f]; progressive: z[0] = n[0], z[f] = shared z[f-1] + own n[f] (Ge et al. 2023).
    """
    word, offset = 0 if stream is None else stream, 0 if sample_offset is None else sample_offset
    fresh = _philox.normals(batch, per_sample, seed, offset, word)
    if not frames:
        return fresh.to(dtype)
    fresh = fresh.unflatten(1, (frames, per_sample // frames))
    if progressive:
        made = [fresh[:, 0]]
        for frame in range(1, frames):
            made.append(shared * made[-1] + own * fresh[:, frame])
        return torch.stack(made, dim=1).flatten(1).to(dtype)
    common = _philox.normals(batch, per_sample // frames, seed, offset, word ^ _philox.SHARED_STREAM)
    return (shared * common[:, None] + own * fresh).flatten(1).to(dtype)


def shaped(normals: Tensor, shape: Sequence[int]) -> Tensor:
    """(B, n) as a view of `shape`: for rank 4 and 5 the elements count with the channel axis last."""
    if len(shape) not in (4, 5):
        return normals.reshape(tuple(shape))
    return normals.reshape((shape[0], *shape[2:], shape[1])).movedim(-1, 1)
