"""Every norm, activation and attention of a model, and why no op does it."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import nn

from vdiff_fast.nn.plain import hooked
from vdiff_fast.patch.families import why_unknown
from vdiff_fast.patch.fused_class import unfused_class
from vdiff_fast.patch.recognise import GROUP_NORM, SILU, inherits_forward, kind_of
from vdiff_fast.patch.report import HOOKED

# torch's classes, then what authors call their own.
_CLASSES: dict[str, type[nn.Module]] = {
    "GroupNorm": nn.GroupNorm,
    "LayerNorm": nn.LayerNorm,
    "RMSNorm": nn.RMSNorm,
    "SiLU": nn.SiLU,
    "GELU": nn.GELU,
    "attention": nn.MultiheadAttention,
}
_NAMES = {
    "GroupNorm": r"group_?norm",
    "LayerNorm": r"layer_?norm",
    "RMSNorm": r"rms_?norm",
    "SiLU": r"silu|swish|swiglu",
    "GELU": r"gelu|geglu",
    "attention": r"attention$|attn$",
}


def places(model: nn.Module) -> dict[str, str]:
    """The kind of every innermost norm and activation, and of every innermost attention, by name."""
    kinds = {name: _kind(module) for name, module in model.named_modules()}
    found = {name: kind for name, kind in kinds.items() if kind is not None}
    # The norm of an AdaLayerNorm is its LayerNorm, and an attention holds norms of its own.
    holders = {(above, kind == "attention") for name, kind in found.items() for above in _above(name)}
    return {name: kind for name, kind in found.items() if (name, kind == "attention") not in holders}


def why_left(name: str, kind: str, model: nn.Module, refused: Mapping[str, str]) -> str:
    """The reason why a place runs no op: that of a finding that was refused, or that there was none."""
    if name in refused:
        return refused[name]
    module = model.get_submodule(name)
    if hooked(module):
        return HOOKED
    unknown = why_unknown(module)
    if unknown is not None:
        return unknown
    cls = unfused_class(module).__name__
    if kind == "GroupNorm":
        known = kind_of(module) == GROUP_NORM
        return (
            "no SiLU is known to be called on its result" if known else f"{cls} is not GroupNorm's forward with a cast"
        )
    if kind == "SiLU":
        return (
            "no norm that an op does is known to be called before it"
            if kind_of(module) == SILU
            else f"{cls} is not SiLU alone"
        )
    if kind == "attention":
        return "not known to attend over frames"
    base = _CLASSES[kind]
    if inherits_forward(unfused_class(module), base):
        return f"a {kind} alone: torch's own kernel is one pass"
    return f"no rule takes {cls}"


def _kind(module: nn.Module) -> str | None:
    cls = unfused_class(module)
    if cls.__module__.startswith("vdiff_fast."):
        return None  # A layer of this library runs its op.
    for kind, base in _CLASSES.items():
        if issubclass(cls, base):
            return kind
    return next((kind for kind, pattern in _NAMES.items() if re.search(pattern, cls.__name__, re.IGNORECASE)), None)


def _above(name: str) -> list[str]:
    """The names of the modules that hold this one; the model's is empty."""
    parts = name.split(".") if name else []
    return [".".join(parts[:i]) for i in range(len(parts))]
