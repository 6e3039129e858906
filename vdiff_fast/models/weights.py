"""Weights by the model's own names, whatever wrapped the model or the file that they come from."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

# Parts of names that wrappers of submodules add: torch.compile, activation checkpointing, FSDP's first version.
_ADDED = ("_orig_mod", "_checkpoint_wrapped_module", "_fsdp_wrapped_module", "_fpw_module")
# Where training scripts keep weights in a checkpoint, averaged ones first.
NESTED = ("ema", "ema_state_dict", "model_ema", "state_dict", "model_state_dict", "model", "module", "net")
_WRAPPERS = (nn.DataParallel, nn.parallel.DistributedDataParallel, torch.optim.swa_utils.AveragedModel)


def layers_of(model: nn.Module) -> list[nn.Module]:
    """The wrappers of a module from the outermost in, and last the module itself.

    Wrappers are torch.compile, DistributedDataParallel, DataParallel and AveragedModel.
    """
    layers = [model]
    while True:
        inner = getattr(layers[-1], "_orig_mod", layers[-1].module if isinstance(layers[-1], _WRAPPERS) else None)
        if not isinstance(inner, nn.Module):
            return layers
        layers.append(inner)


def plain_module(model: nn.Module) -> nn.Module:
    """The module inside its wrappers, however they nest; see `layers_of`."""
    return layers_of(model)[-1]


def plain_names(names: Iterable[str], *, leading: bool = True) -> dict[str, str]:
    """{name: the same without what wrappers added}.

    With `leading`, "module." is taken off the front where every name has it: a network's own part may be called so.
    """
    plain = {name: ".".join(part for part in name.split(".") if part not in _ADDED) for name in names}
    while leading and plain and all(name.startswith("module.") for name in plain.values()):
        plain = {name: value.removeprefix("module.") for name, value in plain.items()}
    return plain


def own_names(module: nn.Module) -> dict[str, str]:
    """{name: the same without wrappers} of a plain module's parameters and whole state, whose parts may be wrapped."""
    names = [*module.state_dict(), *(name for name, _ in module.named_parameters(remove_duplicate=False))]
    return plain_names(names, leading=False)


def weights_like(weights: Mapping[str, Tensor], wanted: Collection[str]) -> dict[str, Tensor]:
    """The tensors without the names of wrappers, "module." too unless the wanted names have it themselves."""
    plain = plain_names(weights, leading=False)
    named = {plain[name]: value for name, value in weights.items()}
    while named and not set(wanted) <= named.keys() and all(name.startswith("module.") for name in named):
        named = {name.removeprefix("module."): value for name, value in named.items()}
    return named


def plain_weights(source: Mapping[str, Any] | nn.Module, *, holding: str | None = None) -> dict[str, Tensor]:
    """Tensors by the model's own names, from a module, a state_dict or a training checkpoint.

    Args:
        source: a module, wrapped or not; a state_dict with the names of any wrapper; or a checkpoint that holds one
            under one of `NESTED`, averaged weights before others.
        holding: a name that the model has: what stands before it ("model." in a checkpoint of Lightning) is taken off
            all names.

    Raises:
        TypeError: something else, or entries that are no tensors; the message says what to give.
        ValueError: two names that differ only by their wrappers.
    """
    if isinstance(source, nn.Module):
        source = plain_module(source).state_dict()
    if not isinstance(source, Mapping):
        raise TypeError(
            f"weights are a state_dict (names and tensors) or a module, got {type(source).__name__}; load a file with "
            "torch.load(path, weights_only=True) or safetensors.torch.load_file(path)"
        )
    source = _unnested(source)
    # AveragedModel counts its updates beside the module.
    weights = {name: value for name, value in source.items() if name != "n_averaged"}
    wrong = [name for name, value in weights.items() if not isinstance(value, Tensor)]
    if wrong or not weights:
        found = ", ".join(f"{name} ({type(source[name]).__name__})" for name in wrong[:3]) or "nothing"
        raise TypeError(
            f"a state_dict holds tensors, this one has {found}; give the entry that holds the weights "
            f"(looked for: {', '.join(NESTED)})"
        )
    plain = plain_names(weights)
    if len(set(plain.values())) < len(plain):
        twice = sorted(name for name, value in plain.items() if list(plain.values()).count(value) > 1)
        raise ValueError(f"{', '.join(twice[:4])} are one name without the wrappers' parts; give one set of weights")
    weights = {plain[name]: value for name, value in weights.items()}
    outer = {name.removesuffix(holding) for name in weights if name.endswith(holding)} if holding else set()
    prefix = outer.pop() if len(outer) == 1 else ""
    if all(name.startswith(prefix) for name in weights):
        weights = {name.removeprefix(prefix): value for name, value in weights.items()}
    return weights


def _unnested(source: Mapping[str, Any]) -> Mapping[str, Any]:
    """The innermost mapping below the keys of `NESTED`; a state_dict itself has none."""
    while True:
        inner = next((source[key] for key in NESTED if isinstance(source.get(key), (Mapping, nn.Module))), None)
        if inner is None:
            return source
        source = plain_module(inner).state_dict() if isinstance(inner, nn.Module) else inner


def weights_dtype(weights: Mapping[str, Tensor]) -> torch.dtype:
    """The dtype for a model of these weights: theirs, the widest where they differ.

    Raises:
        TypeError: they are quantised or packed in integers, which no plain layer multiplies with.
    """
    dtype: torch.dtype | None = None
    for name, value in weights.items():
        if value.is_quantized or not value.is_floating_point() or value.dtype.itemsize < 2:
            raise TypeError(
                f"{name} is {value.dtype}: quantised weights are not taken; give them in float32, bfloat16 or float16 "
                "(dequantised, or from before the quantisation)"
            )
        dtype = value.dtype if dtype is None else torch.promote_types(dtype, value.dtype)
    assert dtype is not None
    return dtype


def tied_names(module: nn.Module) -> dict[str, str]:
    """{name: the first name of the same parameter or buffer}, of those that a module has under several names."""
    first: dict[int, str] = {}
    named = [*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False)]
    return {name: first[id(value)] for name, value in named if first.setdefault(id(value), name) != name}
