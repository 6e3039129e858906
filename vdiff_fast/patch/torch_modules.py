"""GroupNorm before SiLU, wherever one module calls them one after the other."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import Any, cast

from torch import nn
from torch.nn import functional as F

from vdiff_fast.nn.plain import hooked
from vdiff_fast.patch.fused_class import Forward, Maker, unfused_class
from vdiff_fast.patch.norm_silu import OP, norm_then_act
from vdiff_fast.patch.recognise import GROUP_NORM, SILU, computes, inherits_forward, kind_of
from vdiff_fast.patch.report import HOOKED, Finding
from vdiff_fast.patch.rewrite import Pair, pairs_of, rewritten


def sequential(original: type[nn.Module]) -> Forward:
    """nn.Sequential's forward. A layer that is called alone, or after a slice, does what it did."""

    def forward(self: nn.Sequential, input: Any) -> Any:
        modules, i = list(self._modules.values()), 0
        while i < len(modules):
            module: Any = modules[i]
            if i + 1 < len(modules) and computes(module, GROUP_NORM):
                input, i = norm_then_act(module, modules[i + 1], input), i + 2
            else:
                input, i = module(input), i + 1
        return input

    return forward


def find(module: nn.Module, names: Mapping[int, str]) -> Iterator[Finding]:
    """The pairs that the forward of one module calls; `names` are the model's, by id of the module."""
    cls, maker = unfused_class(module), cast(Maker, rewritten)
    if inherits_forward(cls, nn.Sequential):
        pairs, maker = [Pair(norm, act) for norm, act in pairwise(module.children())], sequential
    elif any(kind_of(child) == GROUP_NORM for child in module.children()):
        pairs = pairs_of(cls, module)
    else:
        return
    for pair in pairs:
        silu = pair.act is F.silu or (isinstance(pair.act, nn.Module) and kind_of(pair.act) == SILU)
        if not silu or not isinstance(pair.norm, nn.Module) or kind_of(pair.norm) != GROUP_NORM:
            continue
        parts = [part for part in (pair.norm, pair.act) if isinstance(part, nn.Module)]
        reason = HOOKED if any(map(hooked, [module, *parts])) else None
        covers = tuple(names[id(part)] for part in parts if id(part) in names)
        yield Finding(covers[0], OP, module, maker, covers, reason)
