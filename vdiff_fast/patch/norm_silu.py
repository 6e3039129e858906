"""GroupNorm before SiLU in one pass, decided anew at every call.

The norm and the SiLU stay what they are, and are called wherever a hook, an adapter or another module has come in
between, and by everybody who calls one of them alone.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from vdiff_fast.ops.group_norm_silu import group_norm_silu
from vdiff_fast.patch.recognise import GROUP_NORM, SILU, computes

OP = "group_norm_silu"


def left_to_inductor(x: Tensor) -> bool:
    """Whether torch.compile is to see torch's own functions in the place of a norm's kernel.

    On a CPU Inductor fuses the norm with what surrounds it, and moves fewer bytes: of a ResnetBlock2D in bfloat16 14.7
    activations against 18.6. On a GPU its GroupNorm reads the input twice.
    """
    return torch.compiler.is_compiling() and x.device.type == "cpu"


def norm_with_silu(norm: Any, x: Tensor, **vectors: Any) -> Tensor:
    """SiLU(GroupNorm(x)) with the parameters of `norm`, which `computes` GROUP_NORM."""
    return group_norm_silu(x, norm.num_groups, norm.weight, norm.bias, norm.eps, **vectors)


def norm_then_act(norm: Any, act: Any, x: Any) -> Any:
    """act(norm(x)), in one pass where that is SiLU of GroupNorm."""
    silu = act is F.silu or computes(act, SILU)
    if silu and computes(norm, GROUP_NORM) and not left_to_inductor(x):
        return norm_with_silu(norm, x)
    return act(norm(x))
