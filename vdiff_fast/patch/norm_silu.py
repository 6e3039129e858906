"""A norm before SiLU in one pass, decided anew at every call.

The norm and the SiLU stay what they are, and are called wherever a hook, an adapter or another module has come in
between, and by everybody who calls one of them alone.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from vdiff_fast.ops.group_norm_silu import group_norm_silu
from vdiff_fast.patch.families import row_of
from vdiff_fast.patch.fused_class import Forward, is_fused
from vdiff_fast.patch.recognise import GROUP_NORM, SILU, computes, kind_of

OP = "group_norm_silu"


def left_to_inductor(x: Tensor, *, pointwise: bool = False) -> bool:
    """Whether torch.compile is to see torch's own functions in the place of an op.

    A pointwise chain it fuses as well as any kernel, and with its neighbours; on a CPU a norm, too: a ResnetBlock2D in
    bfloat16 moves 14.7 activations, and 18.6 around an op. On a GPU its GroupNorm reads the input twice.
    """
    return torch.compiler.is_compiling() and (pointwise or x.device.type == "cpu")


def norm_with_silu(norm: Any, x: Tensor, **vectors: Any) -> Tensor:
    """SiLU(GroupNorm(x)) with the parameters of `norm`, which `computes` GROUP_NORM."""
    return group_norm_silu(x, norm.num_groups, norm.weight, norm.bias, norm.eps, **vectors)


def op_of(norm: Any) -> str | None:
    """The op that does a norm and the SiLU behind it; None where the norm's class is not known."""
    if kind_of(norm) == GROUP_NORM:
        return OP
    row = row_of(norm)
    return None if row is None else row.op


def run(x: Any, *layers: Any) -> Any:
    """The layers one after the other; a norm and the SiLU behind it in one pass."""
    i = 0
    while i < len(layers):
        behind = layers[i + 1] if i + 1 < len(layers) else None
        fused = _fused(layers[i], x) if computes(behind, SILU) and not left_to_inductor(x) else None
        x, i = (layers[i](x), i + 1) if fused is None else (fused, i + 2)
    return x


def _fused(norm: Any, x: Tensor) -> Tensor | None:
    """SiLU(norm(x)), where an op does the norm."""
    if computes(norm, GROUP_NORM):
        return norm_with_silu(norm, x)
    row = row_of(norm)
    return row.call(norm, x, "silu") if row is not None and row.serves(norm, x) else None


def norm_alone(original: type[nn.Module]) -> Forward:
    """A norm that torch does in several passes, in one."""

    def forward(self: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if args or kwargs or left_to_inductor(x) or not is_fused(self):
            return original.forward(self, x, *args, **kwargs)
        row = row_of(self)
        serves = row is not None and row.serves(self, x)
        return row.call(self, x, "none") if serves else original.forward(self, x)  # type: ignore[union-attr]

    return forward
