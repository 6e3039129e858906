"""Embeddings of the diffusion step, of class labels and of positions."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vdiff_fast import ops
from vdiff_fast._derivatives import values_readable
from vdiff_fast.nn.plain import is_plain, parameter_dtype


class TimestepEmbedding(nn.Module):
    """e = W2 SiLU(W1 sinusoids(t) + b1) + b2, one fused op (`vf.ops.timestep_mlp`) of two plain Linears.

    Args:
        dim: number of sinusoids, frequencies 1 to 1 / max_period.
        hidden: width of W1's output.
        out: width of e; `hidden` where left out.
        max_period, shift, flip_sin_to_cos, scale: as in `vf.ops.timestep_embedding`.

    Shape: t (B,) integer or float -> (B, out) in the weights' dtype.

    Source: Ho et al. 2020, "Denoising Diffusion Probabilistic Models", appendix B.
    """

    def __init__(
        self,
        dim: int,
        hidden: int,
        out: int | None = None,
        *,
        max_period: float = 10000.0,
        shift: float = 1.0,
        flip_sin_to_cos: bool = False,
        scale: float = 1.0,
    ) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(dim, hidden)
        self.linear_2 = nn.Linear(hidden, hidden if out is None else out)
        self.dim = dim
        self.max_period, self.shift, self.flip_sin_to_cos, self.scale = max_period, shift, flip_sin_to_cos, scale

    def forward(self, t: Tensor) -> Tensor:
        first, second = self.linear_1, self.linear_2
        options: dict[str, Any] = {
            "max_period": self.max_period,
            "shift": self.shift,
            "flip_sin_to_cos": self.flip_sin_to_cos,
            "scale": self.scale,
        }
        if is_plain(first, nn.Linear) and is_plain(second, nn.Linear):
            return ops.timestep_mlp(t, first.weight, first.bias, second.weight, second.bias, **options)
        dtype = parameter_dtype(first)
        times = t.to(torch.float64 if dtype == torch.float64 else torch.float32)
        return second(F.silu(first(ops.timestep_embedding(times, self.dim, **options).to(dtype))))


def labels_or_null(y: Tensor | None, null_class: int, t: Tensor) -> Tensor:
    """y, or without labels the null class for every time in t (B,).

    A tensor, because what takes the place of an embedding (an adapter) knows no other way to ask for a row.
    """
    return torch.full_like(t, null_class, dtype=torch.int64) if y is None else y


class LabelEmbedding(nn.Embedding):
    """e = E[y] with one more row than there are classes: row `num_classes` is the null class of guidance.

    Shape: y (B,) int64 in [0, num_classes] -> (B, dim); `y=None` gives `batch` times the null class.

    Raises:
        ValueError: a label lies outside [0, num_classes] (read on CPU tensors only; on a GPU it would wait for it).

    Source: Ho and Salimans 2022, "Classifier-Free Diffusion Guidance", algorithm 1.
    """

    def __init__(self, num_classes: int, dim: int) -> None:
        super().__init__(num_classes + 1, dim)
        self.num_classes = num_classes

    def forward(self, y: Tensor | None, batch: int = 1) -> Tensor:
        if y is None:
            return self.weight[self.num_classes].expand(batch, -1)
        if values_readable(y):
            self._check(y)
        return super().forward(y)

    def _check(self, y: Tensor) -> None:
        wrong = y[(y < 0) | (y > self.num_classes)]
        if wrong.numel():
            raise ValueError(
                f"label {int(wrong[0])} is outside 0..{self.num_classes - 1} "
                f"({self.num_classes} is the null class); the model knows {self.num_classes} classes"
            )


class GridEmbedding(nn.Module):
    """e[:, i, j, k] = W_T f(u_i) + W_H f(u_j) + W_W f(u_k): where a pixel lies in its clip, u_i = (2 i + 1) / n - 1.

    f(u) = [u | sin(2^m pi u / 2) | cos(2^m pi u / 2)], m = 0 .. octaves - 1. Convolutions alone learn the
    position of a pixel from the padding only, which is slow where all scenes are aligned or there is only one scene.

    Args:
        channels: width of e.
        octaves: frequencies per axis.

    Shape: sizes (T, H, W) -> (1, channels, T, H, W) in channels-last memory, on `device` (the parameters' by default:
        those of an offloaded layer lie elsewhere until it is called).

    Source: Liu et al. 2018, "CoordConv"; Mildenhall et al. 2020, "NeRF", eq. 4 (octaves).
    """

    def __init__(self, channels: int, octaves: int = 4) -> None:
        super().__init__()
        self.octaves = octaves
        self.axes = nn.ModuleList(nn.Linear(1 + 2 * octaves, channels, bias=False) for _ in range(3))

    def _features(self, size: int, device: torch.device) -> Tensor:
        """f of every position of one axis, (size, 1 + 2 octaves)."""
        u = (2 * torch.arange(size, device=device, dtype=torch.float32) + 1) / size - 1
        angles = u[:, None] * (math.pi / 2) * 2.0 ** torch.arange(self.octaves, device=device)
        return torch.cat([u[:, None], angles.sin(), angles.cos()], dim=1)

    def forward(self, frames: int, height: int, width: int, *, device: torch.device | None = None) -> Tensor:
        if device is None:
            device = next(self.axes.parameters()).device
        t, h, w = (
            axis(self._features(size, device).to(parameter_dtype(axis)))
            for axis, size in zip(self.axes, (frames, height, width))
        )
        return (t[:, None, None] + h[:, None] + w).movedim(-1, 0)[None]
