"""y = LN(x) * (1 + scale) + shift, LN(x) = (x - mean_D(x)) / sqrt(var_D(x) + eps) * weight + bias.

Layer normalisation: Ba et al. 2016, eq. 4; its modulation by a condition (adaLN): Peebles and Xie 2023, section 3.2.
"""

from __future__ import annotations

from torch import Tensor

from vdiff_fast.ops._common.modulation import over_tokens
from vdiff_fast.ops._common.normalise import layer_norm


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
    return layer_norm(x, weight, bias, eps) * (1 + over_tokens(scale, x)) + over_tokens(shift, x)
