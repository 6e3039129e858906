"""y = act(x / sqrt(mean_C(x^2) + eps) * weight * (1 + scale) + shift), over the channels of each position.

Root mean square normalisation: Zhang and Sennrich 2019, eq. 4. Over channels it is the norm of lucidrains' video
diffusion and of Wan's VAE, `F.normalize(x, dim=1) * sqrt(C) * weight`; the mean square is taken in float32 here, where
`F.normalize` in float16 overflows above 255 * sqrt(C) / C and flushes to zero below 2e-4.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def _over_space(value: Tensor, x: Tensor) -> Tensor:
    """(C,), (B, C), (B, T, C) or x's rank with size-1 space, as a tensor that broadcasts against x (B, C, ...)."""
    value = value.to(x.dtype)
    if value.dim() == 1:
        value = value[None]
    if value.dim() == 2:
        return value.reshape(*value.shape, *[1] * (x.dim() - 2))
    if value.dim() == 3 and x.dim() == 5:
        return value.transpose(1, 2)[..., None, None]
    return value


def rms_norm_silu(
    x: Tensor,
    weight: Tensor | None = None,
    *,
    eps: float = 1e-6,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    activation: str = "silu",
) -> Tensor:
    wide = x if x.dtype == torch.float64 else x.float()
    y = (wide * torch.rsqrt(wide.square().mean(dim=1, keepdim=True) + eps)).to(x.dtype)
    y = y if weight is None else y * _over_space(weight, y)
    y = y if scale is None else y * (1 + _over_space(scale, y))
    y = y if shift is None else y + _over_space(shift, y)
    return F.silu(y) if activation == "silu" else y
