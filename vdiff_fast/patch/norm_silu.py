"""GroupNorm before SiLU in one pass, decided anew at every call.

The norm and the SiLU stay what they are, and are called wherever a hook, an adapter or another module has come in
between, and by everybody who calls one of them alone.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vdiff_fast.ops.group_norm_silu import group_norm_silu
from vdiff_fast.patch.recognise import GROUP_NORM, SILU, computes

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


def run(x: Any, *layers: Any) -> Any:
    """The layers one after the other; GroupNorm and the SiLU behind it in one pass."""
    i = 0
    while i < len(layers):
        behind = layers[i + 1] if i + 1 < len(layers) else None
        if computes(layers[i], GROUP_NORM) and computes(behind, SILU) and not left_to_inductor(x):
            x, i = norm_with_silu(layers[i], x), i + 2
        else:
            x, i = layers[i](x), i + 1
    return x
