"""A row says how an op computes a norm class of another library, and which source of its forward was read.

A class whose forward has another source than the row's is not known: a newer version of the library may compute
something else under the same name.
"""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

from vdiff_fast.nn.plain import has_plain_parameters, hooked
from vdiff_fast.patch.fused_class import unfused_class

_FAMILIES = ("autoencoders", "tokens")
# What the ops take; float64 runs on a CPU alone, which is where it is used.
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


# Rows of the classes that were met: a plain dictionary, which torch.compile reads without a warning.
_KNOWN: dict[type[nn.Module], NormRow | None] = {}


@dataclass(frozen=True)
class NormRow:
    """One norm class.

    Args:
        module, name: where the class is defined.
        source: `fingerprint` of the forward that was read.
        op: the op's name.
        call: (norm, x, activation) to the op's result.
        fits: whether this norm of the class, for this x, is what the op computes.
    """

    module: str
    name: str
    source: str
    op: str
    call: Callable[[Any, Tensor, str], Tensor]
    fits: Callable[[Any, Tensor], bool]

    def serves(self, norm: nn.Module, x: Any) -> bool:
        """Whether the op may run in the place of norm(x) now."""
        if not isinstance(x, Tensor) or x.dtype not in DTYPES or x.numel() == 0:
            return False
        if any(hooked(part) or not has_plain_parameters(part) for part in norm.modules()):
            return False
        return all(_keeps_dtype(p, x) for p in norm.parameters()) and self.fits(norm, x)


def _keeps_dtype(parameter: Tensor, x: Tensor) -> bool:
    """A wider parameter widens the result, which the next layer casts under autocast alone."""
    return parameter.dtype == x.dtype or torch.is_autocast_enabled(x.device.type)


def row_of(norm: Any) -> NormRow | None:
    """The row of a module's class; None where there is none or its forward is another one."""
    if not isinstance(norm, nn.Module):
        return None
    cls = type(norm)
    if cls not in _KNOWN:
        _KNOWN[cls] = _row_of_class(unfused_class(norm))
    return _KNOWN[cls]


def why_unknown(norm: nn.Module) -> str | None:
    """Why a class that a row names is not served; None where no row names it."""
    cls = unfused_class(norm)
    if (cls.__module__, cls.__qualname__) in _rows() and row_of(norm) is None:
        return f"the source of {cls.__name__}'s forward is not the one that was read"
    return None


def fingerprint(cls: type[nn.Module]) -> str:
    """Twelve digits of the forward's source; none where it cannot be read."""
    try:
        source = inspect.getsource(inspect.unwrap(cls.forward))
    except (OSError, TypeError):
        return ""
    return hashlib.sha256(source.encode()).hexdigest()[:12]


def _row_of_class(cls: type[nn.Module]) -> NormRow | None:
    # A subclass may inherit the forward of a class that has a row.
    for base in cls.__mro__:
        row = _rows().get((base.__module__, base.__qualname__))
        if row is not None:
            inherits = cls.forward is base.forward  # type: ignore[attr-defined]
            return row if inherits and fingerprint(base) == row.source else None
    return None


@cache
def _rows() -> dict[tuple[str, str], NormRow]:
    families = [import_module(f"vdiff_fast.patch.families.{name}") for name in _FAMILIES]
    return {(row.module, row.name): row for family in families for row in family.ROWS}
