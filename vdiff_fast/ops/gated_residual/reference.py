"""y = residual + gate * branch: the end of a branch in an adaLN-Zero block (Peebles and Xie 2023, section 3.2)."""

from __future__ import annotations

from torch import Tensor

from vdiff_fast.ops._common.modulation import over_tokens


def gated_residual(residual: Tensor, branch: Tensor, gate: Tensor) -> Tensor:
    return residual + over_tokens(gate, residual) * branch
