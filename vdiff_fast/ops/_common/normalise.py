"""Norms and softmax in plain arithmetic, for what torch's own do not differentiate."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from vdiff_fast import _derivatives


def normalised(x: Tensor, axes: Sequence[int], eps: float) -> Tensor:
    """(x - mean) / sqrt(var + eps) over the axes, in float32 or wider.

    It stands for torch's norms in forward mode and under transforms of torch.func: there (torch 2.13)
    `torch.group_norm` refuses channels-last memory, and the gradient of a tangent of `F.layer_norm` is wrong.
    """
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    centred = wide - wide.mean(tuple(axes), keepdim=True)
    return centred * torch.rsqrt(centred.square().mean(tuple(axes), keepdim=True) + eps)


def layer_norm(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    """`F.layer_norm` over the last axis, differentiable in every mode."""
    if not _derivatives.transformed():
        # The second derivatives of torch's are wrong, or fail, where one of the two stands alone.
        if weight is None and bias is not None:
            weight = torch.ones_like(bias)
        elif bias is None and weight is not None:
            bias = torch.zeros_like(weight)
        return F.layer_norm(x, x.shape[-1:], weight, bias, eps)
    y = normalised(x, [-1], eps)
    y = y if weight is None else y * weight
    return (y if bias is None else y + bias).to(x.dtype)


def softmax(logits: Tensor) -> Tensor:
    """Over the last axis, differentiable in every mode: torch's overwrites what the gradient of its tangent needs."""
    if not _derivatives.transformed():
        return logits.softmax(-1)
    weights = (logits - logits.detach().amax(-1, keepdim=True)).exp()
    return weights / weights.sum(-1, keepdim=True)
