"""Norms before SiLU, wherever one module calls them one after the other, and norms that torch does in many passes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import Any, cast

from torch import nn

from vdiff_fast.nn.plain import hooked
from vdiff_fast.patch.families import row_of
from vdiff_fast.patch.fused_class import Forward, Maker, unfused_class
from vdiff_fast.patch.modulated import GATE_OP, modulation_op
from vdiff_fast.patch.norm_silu import norm_alone, op_of, run
from vdiff_fast.patch.recognise import SILU, inherits_forward, kind_of
from vdiff_fast.patch.report import HOOKED, Finding
from vdiff_fast.patch.rewrite import gates_of, modulated_norms_of, pairs_of, rewritten


def sequential(original: type[nn.Module]) -> Forward:
    """nn.Sequential's forward. A layer that is called alone, or after a slice, does what it did."""

    def forward(self: nn.Sequential, input: Any) -> Any:
        return run(input, *self._modules.values())

    return forward


def find(module: nn.Module, names: Mapping[int, str]) -> Iterator[Finding]:
    """The pairs that the forward of one module calls; `names` are the model's, by id of the module."""
    cls, maker = unfused_class(module), cast(Maker, rewritten)
    row = row_of(module)
    if row is not None:
        name = names[id(module)]
        yield Finding(name, row.op, module, norm_alone, _inner(module, name), HOOKED if hooked(module) else None)
        return
    if inherits_forward(cls, nn.Sequential):
        pairs, maker = list(pairwise(module._modules.values())), sequential
    elif any(op_of(child) is not None for child in module.children()):
        pairs = pairs_of(cls, module)
    else:
        pairs = []
    yield from _arithmetic(cls, module, names)
    # A pair may stand in several branches.
    for norm, act in {(id(norm), id(act)): (norm, act) for norm, act in pairs}.values():
        op = op_of(norm)
        if op is None or kind_of(act) != SILU:
            continue
        parts = [part for part in (norm, act) if isinstance(part, nn.Module)]
        reason = HOOKED if any(map(hooked, [module, *parts])) else None
        covers = tuple(inner for part in parts for inner in _inner(part, names[id(part)]))
        yield Finding(names[id(norm)], op, module, maker, covers, reason)


def _arithmetic(cls: type[nn.Module], module: nn.Module, names: Mapping[int, str]) -> Iterator[Finding]:
    """Modulated norms, and the gated residuals of a block."""
    reason = HOOKED if hooked(module) else None
    norms = modulated_norms_of(cls, module) if any(map(modulation_op, module.children())) else []
    for norm in {id(norm): norm for norm in norms}.values():
        op = modulation_op(norm)
        if op is not None:
            why = HOOKED if hooked(norm) else reason
            yield Finding(names[id(norm)], op, module, cast(Maker, rewritten), (names[id(norm)],), why)
    for i in range(gates_of(cls, module) if "Block" in cls.__name__ else 0):
        place = f"{names[id(module)]} (gate {i})".lstrip()
        yield Finding(place, GATE_OP, module, cast(Maker, rewritten), (place,), reason)


def _inner(module: nn.Module, name: str) -> tuple[str, ...]:
    """The innermost modules of a norm, which are what is counted."""
    return tuple(f"{name}.{part}" if part else name for part, inner in module.named_modules() if not inner._modules)
