"""h = residual + gate * branch, y = LN(h) * (1 + scale) + shift: adaLN-Zero between two branches of a block.

Peebles and Xie 2023, section 3.2 ("adaLN-Zero block"): the gate closes one branch, shift and scale open the next.
"""

from __future__ import annotations

from torch import Tensor

from vdiff_fast.ops.gated_residual.reference import gated_residual
from vdiff_fast.ops.layer_norm_modulate.reference import layer_norm_modulate


def gated_residual_norm_modulate(
    residual: Tensor, branch: Tensor, gate: Tensor, shift: Tensor, scale: Tensor, *, eps: float = 1e-6
) -> tuple[Tensor, Tensor]:
    new_residual = gated_residual(residual, branch, gate)
    return new_residual, layer_norm_modulate(new_residual, shift, scale, eps=eps)
