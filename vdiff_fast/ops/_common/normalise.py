"""Normalisation in plain arithmetic, for what torch's own norms do not differentiate."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def normalised(x: Tensor, axes: Sequence[int], eps: float) -> Tensor:
    """(x - mean) / sqrt(var + eps) over the axes, in float32 or wider.

    The references use it in forward mode and under transforms of torch.func: there (torch 2.13) `torch.group_norm`
    refuses channels-last memory, and the gradient of a tangent of `F.layer_norm` is wrong.
    """
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    centred = wide - wide.mean(tuple(axes), keepdim=True)
    return centred * torch.rsqrt(centred.square().mean(tuple(axes), keepdim=True) + eps)
