"""Subclasses of a module's own class with another forward, by the name of the original."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

from torch import nn

Forward = Callable[..., Any]
# Given the class of a module, its forward with the ops: a module-level function, so that pickles can name it.
Maker = Callable[[type[nn.Module]], Forward]
_TRANSFORMERS = "diffusers.models.transformers."
_CLASSES: dict[tuple[type[nn.Module], Maker], type[nn.Module]] = {}


class Fused(nn.Module):
    """What the classes of patched modules have in common.

    Libraries know blocks by the name of their class (device maps, compilation of repeated blocks, saved
    configurations) or by the class itself (caches of blocks): the name is the original's, and so is the entry in
    diffusers' registries.
    """

    unfused: ClassVar[type[nn.Module]]
    maker: ClassVar[Maker]

    def _get_name(self) -> str:
        return f"Fused{type(self).__name__}"

    def __reduce_ex__(self, protocol: Any) -> Any:
        reduced: Any = super().__reduce_ex__(protocol)
        return _new, (type(self).unfused, type(self).maker), *reduced[2:]


def fused_class(original: type[nn.Module], maker: Maker) -> type[nn.Module]:
    """The subclass of `original` whose forward is `maker(original)`; the same one every time."""
    if (original, maker) not in _CLASSES:
        attributes = {
            "forward": maker(original),
            "unfused": original,
            "maker": staticmethod(maker),
            "__module__": original.__module__,
            "__qualname__": original.__qualname__,
            "__doc__": original.__doc__,
        }
        fused = type(original.__name__, (Fused, original), attributes)
        _register(fused, original)
        _CLASSES[original, maker] = fused
    return _CLASSES[original, maker]


def unfused_class(module: nn.Module) -> type[nn.Module]:
    """The class of a module before it was patched."""
    return getattr(type(module), "unfused", type(module))


def is_fused(module: nn.Module) -> bool:
    """Whether the module is patched still: a forward that somebody kept may outlive it."""
    return isinstance(module, Fused)


def _new(original: type[nn.Module], maker: Maker) -> nn.Module:
    cls = fused_class(original, maker)
    return cls.__new__(cls)


def _register(fused: type[nn.Module], original: type[nn.Module]) -> None:
    """diffusers' caches of blocks ask what a transformer block returns by its exact class."""
    if original.__module__ != "diffusers.models.attention" and not original.__module__.startswith(_TRANSFORMERS):
        return
    from diffusers.hooks._helpers import TransformerBlockRegistry as registry  # a class of class methods

    registry._register()
    if original in registry._registry:
        registry._registry[fused] = registry._registry[original]
