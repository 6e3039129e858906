"""GroupNorm before SiLU, wherever one module calls them one after the other."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import Any, cast

from torch import nn

from vdiff_fast.nn.plain import hooked
from vdiff_fast.patch.fused_class import Forward, Maker, unfused_class
from vdiff_fast.patch.norm_silu import OP, run
from vdiff_fast.patch.recognise import GROUP_NORM, SILU, inherits_forward, kind_of
from vdiff_fast.patch.report import HOOKED, Finding
from vdiff_fast.patch.rewrite import pairs_of, rewritten


def sequential(original: type[nn.Module]) -> Forward:
    """nn.Sequential's forward. A layer that is called alone, or after a slice, does what it did."""

    def forward(self: nn.Sequential, input: Any) -> Any:
        return run(input, *self._modules.values())

    return forward


def find(module: nn.Module, names: Mapping[int, str]) -> Iterator[Finding]:
    """The pairs that the forward of one module calls; `names` are the model's, by id of the module."""
    cls, maker = unfused_class(module), cast(Maker, rewritten)
    if inherits_forward(cls, nn.Sequential):
        pairs, maker = list(pairwise(module._modules.values())), sequential
    elif any(kind_of(child) == GROUP_NORM for child in module.children()):
        pairs = pairs_of(cls, module)
    else:
        return
    # A pair may stand in several branches.
    for norm, act in {(id(norm), id(act)): (norm, act) for norm, act in pairs}.values():
        if kind_of(norm) != GROUP_NORM or kind_of(act) != SILU:
            continue
        parts = [part for part in (norm, act) if isinstance(part, nn.Module)]
        reason = HOOKED if any(map(hooked, [module, *parts])) else None
        covers = tuple(names[id(part)] for part in parts)
        yield Finding(covers[0], OP, module, maker, covers, reason)
