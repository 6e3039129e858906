"""Public function: errors and backend choice."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from vdiff_fast import _dispatch
from vdiff_fast.ops._common.frames import checked_frames
from vdiff_fast.ops._common.random import counter_word, seed_tensor
from vdiff_fast.ops.noise import reference


def _for_dtype(predicate: _dispatch.Predicate) -> _dispatch.Predicate:
    """A generic predicate asked about the noise to come: its dtype, on the seed's device."""

    def why_not(seed: Tensor, dtype: torch.dtype = torch.float32) -> str | None:
        return predicate(seed.new_empty((0,), dtype=dtype))

    return why_not


PREDICATES = _dispatch.predicates(__package__, _for_dtype)
_KERNELS = _dispatch.kernel_modules(__package__)


def noise(
    shape: Sequence[int],
    seed: int | Tensor,
    *,
    sample_offset: int | Tensor = 0,
    stream: int | Tensor = 0,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
    frame_correlation: float = 0.0,
    correlation_kind: str = "mixed",
) -> Tensor:
    """z[b, e] = Box-Muller(Philox4x32-10(counter (e // 4, sample_offset + b, stream), key seed))[e % 4], z ~ N(0, 1).

    The same seed gives the same fp32 bits on every backend and device, in any split of the batch by `sample_offset`.

    Args:
        shape: (B, ...); e counts the elements of a sample row-major, for rank 4 and 5 with the channel axis last.
        seed: int or 0-d int64 tensor on `device`.
        sample_offset: index of the first sample in the whole batch, modulo 2^32.
        stream: which of 2^32 independent noises; 0 is x_T and training noise, 1 + i is sampler step i.
        dtype: float32, or float64, bfloat16, float16: the fp32 normal cast.
        device: where to draw; the device of a tensor seed, else the CPU, where it is left out.
        frame_correlation: of the frames of a (B, C, T, H, W) video, in [0, 1]: z[f] = sqrt(c) s + sqrt(1 - c) n[f]
            with s common to all frames ("mixed"), or z[f] = c z[f - 1] + sqrt(1 - c^2) n[f] ("progressive").
        correlation_kind: "mixed" or "progressive".

    Returns:
        Tensor of `shape`; rank 4 and 5 in channels-last memory. Writes each element once and reads nothing.

    Raises:
        TypeError: seed, sample_offset or stream is no int and no 0-d int64 tensor, or dtype is not floating point.
        ValueError: shape has no batch axis or a negative size, or a tensor is on another device; frame_correlation is
            outside [0, 1], or is asked for without a time axis.

    Source: Salmon, Moraes, Dror and Shaw 2011, "Parallel random numbers: as easy as 1, 2, 3"; Box and Muller 1958;
    Ge et al. 2023, "Preserve your own correlation", eq. 2 and 3.
    """
    shape = tuple(shape)
    if not shape or min(shape) < 0:
        raise ValueError(f"noise: shape must be (B, ...) with sizes >= 0, got {shape}")
    if not dtype.is_floating_point:
        raise TypeError(f"noise: dtype must be floating point, got {dtype}")
    frames = checked_frames("noise", shape, frame_correlation, correlation_kind)
    if device is None:
        device = seed.device if isinstance(seed, Tensor) else "cpu"
    seed = seed_tensor("noise", seed, torch.device(device))
    offset = counter_word("noise", "sample_offset", sample_offset, seed.device)
    word = counter_word("noise", "stream", stream, seed.device)
    backend = _dispatch.choose("noise", PREDICATES, seed, dtype)
    draw = reference.normals if backend == "reference" else _KERNELS[backend].noise
    return reference.shaped(draw(seed, offset, word, shape[0], math.prod(shape[1:]), dtype, *frames), shape)
