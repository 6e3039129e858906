"""GroupNorm before SiLU, wherever one module calls them one after the other."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from typing import ClassVar

from torch import Tensor, nn

from vdiff_fast.nn.norm import GroupNormSiLU
from vdiff_fast.patch.report import Finding

HOOKED = "has hooks or a forward of its own"
SHARED = "its SiLU is used elsewhere too"


class FusedGroupNormSiLU(GroupNormSiLU):
    """nn.GroupNorm that does the SiLU behind it as well."""

    unfused: ClassVar[type[nn.Module]] = nn.GroupNorm


class PassThrough(nn.SiLU):
    """nn.SiLU that the norm before it has done."""

    unfused: ClassVar[type[nn.Module]] = nn.SiLU

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]  # nn.SiLU calls x `input`
        return x


def hooked(module: nn.Module) -> bool:
    """Whether somebody looks at what goes in or out, or replaced `forward` on the instance."""
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    return any(hooks) or "forward" in vars(module)


def become(module: nn.Module, fused: type[nn.Module]) -> None:
    module.__class__ = fused


def fuse_pair(name: str, norm: nn.Module, silu: nn.Module, uses: Counter[int]) -> Iterator[Finding]:
    """A norm and the SiLU that its owner calls next."""
    if type(norm) is not nn.GroupNorm or type(silu) is not nn.SiLU:
        return

    def apply() -> None:
        become(norm, FusedGroupNormSiLU)
        become(silu, PassThrough)

    reason = HOOKED if hooked(norm) or hooked(silu) else SHARED if uses[id(silu)] > 1 or uses[id(norm)] > 1 else None
    yield Finding(name, "group_norm_silu", apply, reason)


def uses_of(model: nn.Module) -> Counter[int]:
    """How often each module is registered: one that is called from two places must not change for one of them."""
    return Counter(id(child) for parent in model.modules() for child in parent._modules.values() if child is not None)


def find(model: nn.Module) -> Iterator[Finding]:
    uses = uses_of(model)
    for name, module in model.named_modules():
        if type(module) is nn.Sequential:
            for (key, norm), (_, silu) in pairwise(module.named_children()):
                yield from fuse_pair(f"{name}.{key}".lstrip("."), norm, silu, uses)
