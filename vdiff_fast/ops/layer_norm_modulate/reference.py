"""y = LN(x) * (1 + scale) + shift, LN(x) = (x - mean_D(x)) / sqrt(var_D(x) + eps) * weight + bias.

Layer normalisation: Ba et al. 2016, eq. 4; its modulation by a condition (adaLN): Peebles and Xie 2023, section 3.2.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from vdiff_fast import _derivatives
from vdiff_fast.ops._common.modulation import over_tokens
from vdiff_fast.ops._common.normalise import normalised


def _layer_norm(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    if not _derivatives.transformed():
        return F.layer_norm(x, x.shape[-1:], weight, bias, eps)
    y = normalised(x, [-1], eps)
    y = y if weight is None else y * weight
    return (y if bias is None else y + bias).to(x.dtype)


def layer_norm_modulate(
    x: Tensor,
    shift: Tensor,
    scale: Tensor,
    *,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-6,
) -> Tensor:
    weight, bias = (None if v is None else v.to(x.dtype) for v in (weight, bias))
    return _layer_norm(x, weight, bias, eps) * (1 + over_tokens(scale, x)) + over_tokens(shift, x)
