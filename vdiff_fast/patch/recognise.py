"""What a layer computes of its input and its own parameters: told once per class or function, asked at every call.

Known are torch's classes, their subclasses that inherit `forward`, and classes whose forward is one function of torch
between casts: the GroupNorm of guided-diffusion, computed in float32, and SiLU written as x * sigmoid(x). The ops
compute in float32 and round once, so that such casts are theirs, too. A layer is a module, or a function of a tensor.
"""

from __future__ import annotations

import inspect
import operator
from types import CodeType, FunctionType
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional as F

from vdiff_fast.nn.plain import has_plain_parameters, hooked

GROUP_NORM, SILU = "group_norm", "silu"
_BASES: dict[type[nn.Module], str] = {nn.GroupNorm: GROUP_NORM, nn.SiLU: SILU}
# What the classes and functions that were met compute; None: nothing that is known.
_KINDS: dict[Any, str | None] = {**_BASES, F.silu: SILU}
_CALL = ("forward", "__call__", "_call_impl", "__getattr__", "__getattribute__")
# All that a forward may name.
_CASTS = ("float", "to", "type", "type_as")
_NAMES = {
    *("F", "torch", "nn", "functional", "super", "__class__", "forward", "dtype", "float32", "inplace", *_CASTS),
    *("group_norm", "silu", "sigmoid", "GroupNorm", "SiLU", "num_groups", "weight", "bias", "eps"),
}
_SIGMOIDS = (torch.sigmoid, F.sigmoid, "sigmoid")


def kind_of(layer: Any) -> str | None:
    """What a layer's class computes, found out if it is new. Whether a module has hooks is not asked."""
    key = type(layer) if isinstance(layer, nn.Module) else layer
    if not isinstance(key, (type, FunctionType)):
        return None
    if key not in _KINDS:
        _KINDS[key] = _inherited(key) or _traced(layer)
    return _KINDS[key]


def computes(layer: Any, kind: str) -> bool:
    """Whether a call of `layer` is this function of its input and parameters, and nothing else happens in it."""
    if isinstance(layer, nn.Module):
        return _KINDS.get(type(layer)) == kind and not hooked(layer) and has_plain_parameters(layer)
    return isinstance(layer, FunctionType) and _KINDS.get(layer) == kind


def inherits_forward(cls: type, base: type[nn.Module], *helpers: str) -> bool:
    """Whether a call of a `cls` does what a call of a `base` does, whose forward calls these methods."""
    names = (*_CALL, *helpers)
    return issubclass(cls, base) and all(getattr(cls, name, None) is getattr(base, name, None) for name in names)


def _inherited(cls: type | FunctionType) -> str | None:
    kinds = (kind for base, kind in _BASES.items() if isinstance(cls, type) and inherits_forward(cls, base))
    return next(kinds, None)


def _traced(layer: Any) -> str | None:
    """The kind of a forward that is one known function between casts."""
    forward = type(layer).forward if isinstance(layer, nn.Module) else layer
    if not isinstance(forward, FunctionType) or getattr(layer, "_modules", None) or not _is_plain_code(forward):
        return None
    try:
        nodes = list(fx.Tracer().trace(layer).nodes)
    except Exception:  # The forward asks a proxy for what only a tensor has: then it is more than one function.
        return None
    inputs = [node for node in nodes if node.op == "placeholder"]
    core, leaving = _uncast(nodes[-1].args[0])
    if len(inputs) != 1 or not isinstance(core, fx.Node):
        return None
    kind, entering = _function(core, inputs[0], layer)
    if any(not _is_to_float32(cast) for cast in entering):
        return None
    returned = _is_to_dtype_of(leaving[0], inputs[0]) if leaving else not entering
    return kind if returned else None


def _is_plain_code(forward: FunctionType) -> bool:
    """Whether the code looks at nothing that could differ from one call, or one module, to the next."""
    code, known = forward.__code__, (torch, F, nn, nn.GroupNorm, nn.SiLU)
    names = {name for name in code.co_names if not any(forward.__globals__.get(name) is thing for thing in known)}
    inner = any(isinstance(constant, CodeType) for constant in code.co_consts)
    return names <= _NAMES and set(code.co_freevars) <= {"__class__"} and not inner


def _function(core: fx.Node, x: fx.Node, layer: Any) -> tuple[str | None, list[fx.Node]]:
    """The kind of one node, and the casts of its input; no kind where the input is not x alone."""
    if core.op != "call_function" or not core.args:
        return None, []
    if core.target is operator.mul:
        origins, casts = zip(*(_uncast(argument) for argument in core.args))
        gate = next((node for node in origins if _is_sigmoid(node)), None)
        if gate is None or x not in origins:
            return None, []
        inner, inside = _uncast(gate.args[0])
        return (SILU if inner is x else None), [*casts[0], *casts[1], *inside]
    origin, entering = _uncast(core.args[0])
    if origin is not x:
        return None, []
    if core.target is F.silu:
        return SILU, entering
    own = core.target is F.group_norm and _reads_its_parameters(core, layer)
    return (GROUP_NORM if own else None), entering


def _is_sigmoid(node: Any) -> bool:
    return isinstance(node, fx.Node) and any(node.target is target or node.target == target for target in _SIGMOIDS)


def _reads_its_parameters(node: fx.Node, module: Any) -> bool:
    given = inspect.signature(F.group_norm).bind(*node.args, **node.kwargs)
    given.apply_defaults()
    for name in ("weight", "bias"):
        parameter, _ = _uncast(given.arguments[name])
        mine = isinstance(parameter, fx.Node) and (parameter.op, parameter.target) == ("get_attr", name)
        if not (mine or (parameter is None and getattr(module, name, None) is None)):
            return False
    return all(given.arguments[name] == getattr(module, name, None) for name in ("num_groups", "eps"))


def _uncast(value: Any) -> tuple[Any, list[fx.Node]]:
    """What lies behind a chain of casts, and the casts, the last one first."""
    casts: list[fx.Node] = []
    while isinstance(value, fx.Node) and value.op == "call_method" and value.target in _CASTS:
        casts.append(value)
        value = value.args[0]
    return value, casts


def _is_to_float32(cast: fx.Node) -> bool:
    return cast.target == "float" or torch.float32 in (*cast.args[1:], cast.kwargs.get("dtype"))


def _is_to_dtype_of(cast: fx.Node, x: fx.Node) -> bool:
    wanted = cast.args[1] if len(cast.args) > 1 else cast.kwargs.get("dtype")
    if wanted is x:
        return cast.target in ("to", "type_as")
    is_dtype = isinstance(wanted, fx.Node) and wanted.target is getattr and wanted.args == (x, "dtype")
    return is_dtype and cast.target in ("to", "type")
