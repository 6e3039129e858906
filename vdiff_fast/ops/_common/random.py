"""Arguments of every op that draws noise: the seed and the two counter words, as 0-d int64 tensors."""

from __future__ import annotations

import torch
from torch import Tensor


def _counter_tensor(op: str, name: str, value: int | Tensor, device: torch.device) -> Tensor:
    if isinstance(value, Tensor):
        if value.dtype != torch.int64 or value.dim() != 0:
            raise TypeError(
                f"{op}: {name} must be an int or a 0-d int64 tensor, got {value.dtype} of shape {tuple(value.shape)}"
            )
        # "cuda" without an index is the seed's own GPU.
        if value.device.type != device.type or device.index not in (None, value.device.index):
            raise ValueError(f"{op}: {name} is on {value.device}, but the noise is drawn on {device}")
        return value
    if isinstance(value, bool) or not isinstance(value, (int, torch.SymInt)):
        raise TypeError(f"{op}: {name} must be an int or a 0-d int64 tensor, got {type(value).__name__}")
    if not torch.compiler.is_compiling() and not -(2**63) <= value < 2**63:
        raise ValueError(f"{op}: {name} must fit in 64 signed bits, got {value}")
    return torch.full((), value, dtype=torch.int64, device=device)


def seed_tensor(op: str, seed: int | Tensor | None, device: torch.device) -> Tensor:
    """The seed on the device: one compiled graph then serves every seed.

    Raises:
        TypeError: neither an int nor a 0-d int64 tensor.
        ValueError: a tensor on another device, or an int outside 64 signed bits.
    """
    if seed is None:
        raise TypeError(f"{op}: seed must be an int or a 0-d int64 tensor, got None")
    return _counter_tensor(op, "seed", seed, device)


def counter_word(op: str, name: str, value: int | Tensor, device: torch.device) -> Tensor | None:
    """sample_offset or stream on the device; None stands for 0, which needs no tensor. Errors as `seed_tensor`."""
    if isinstance(value, int) and not isinstance(value, bool) and value == 0:
        return None
    return _counter_tensor(op, name, value, device)


def check_noise_source(op: str, x: Tensor, noise: Tensor | None, seed: int | Tensor | None) -> None:
    """Exactly one of noise and seed, and a noise of x's shape on x's device.

    Raises:
        TypeError: the noise is not floating point.
        ValueError: both or neither are given, or the noise does not match x.
    """
    if (noise is None) == (seed is None):
        given = "both" if noise is not None else "neither"
        raise ValueError(f"{op}: give noise= or seed=, got {given}")
    if noise is None:
        return
    if noise.shape != x.shape:
        raise ValueError(f"{op}: noise has shape {tuple(noise.shape)}, but x0 has {tuple(x.shape)}")
    if not noise.is_floating_point():
        raise TypeError(f"{op}: noise must be floating point, got {noise.dtype}")
    if noise.device != x.device:
        raise ValueError(f"{op}: noise is on {noise.device}, but x0 is on {x.device}")
