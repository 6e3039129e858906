"""y = act(GroupNorm([x | x2] + add) * (1 + scale) + shift).

Group normalisation: Wu and He 2018, eq. 1 and 7; scale and shift: Dhariwal and Nichol 2021, "Diffusion Models Beat
GANs", section 3 (AdaGN); act is SiLU, z * sigmoid(z), or nothing.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from vdiff_fast import _derivatives
from vdiff_fast.ops._common.normalise import normalised


def _over_space(value: Tensor, x: Tensor) -> Tensor:
    """(B, C), (B, T, C) or x's rank with size-1 space, as a tensor that broadcasts against x (B, C, ...)."""
    value = value.to(x.dtype)
    if value.dim() == 2:
        return value.reshape(*value.shape, *[1] * (x.dim() - 2))
    if value.dim() == 3 and x.dim() == 5:
        return value.transpose(1, 2)[..., None, None]
    return value


def _group_norm(
    x: Tensor, num_groups: int, weight: Tensor | None, bias: Tensor | None, eps: float, per_frame: bool
) -> Tensor:
    weight = None if weight is None else weight.to(x.dtype)
    bias = None if bias is None else bias.to(x.dtype)
    if weight is None and bias is not None:
        # The backward of torch.group_norm fails where there is a bias alone.
        weight = torch.ones_like(bias)
    if _derivatives.transformed():
        return _plain_group_norm(x, num_groups, weight, bias, eps, per_frame)
    if not per_frame:
        return torch.group_norm(x, num_groups, weight, bias, eps)
    b, c, t, h, w = x.shape
    frames = x.transpose(1, 2).reshape(b * t, c, h, w)
    return torch.group_norm(frames, num_groups, weight, bias, eps).reshape(b, t, c, h, w).transpose(1, 2)


def _plain_group_norm(
    x: Tensor, num_groups: int, weight: Tensor | None, bias: Tensor | None, eps: float, per_frame: bool
) -> Tensor:
    groups = x.unflatten(1, (num_groups, -1))  # (B, groups, C / groups, T, H, W)
    axes = [2, *range(4 if per_frame else 3, groups.dim())]
    y = normalised(groups, axes, eps).flatten(1, 2)
    y = y if weight is None else y * _over_space(weight[None], y)
    y = y if bias is None else y + _over_space(bias[None], y)
    return y.to(x.dtype)


def group_norm_silu(
    x: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    *,
    x2: Tensor | None = None,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    add: Tensor | None = None,
    per_frame: bool = False,
    activation: str = "silu",
) -> Tensor:
    x = x if x2 is None else torch.cat([x, x2], dim=1)
    x = x if add is None else x + _over_space(add, x)
    y = _group_norm(x, num_groups, weight, bias, eps, per_frame)
    y = y if scale is None else y * (1 + _over_space(scale, y))
    y = y if shift is None else y + _over_space(shift, y)
    return F.silu(y) if activation == "silu" else y
