"""What patching found: which modules run which op, which were left, with the reason, and what was lost since."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field

from torch import nn

from vdiff_fast.patch.fused_class import Maker, is_fused

# The name of the module that was given.
ITSELF = "(the model)"
HOOKED = "has hooks or a forward of its own"


@dataclass(frozen=True)
class Finding:
    """One place in a model that an op can take over.

    Args:
        module: its qualified name.
        op: the op.
        owner: the module whose forward changes.
        maker: makes that forward.
        covers: the names of the norms, activations and attentions that the op does.
        reason: why it is left as it is; None if it is not.
    """

    module: str
    op: str
    owner: nn.Module
    maker: Maker
    covers: tuple[str, ...]
    reason: str | None = None

    @property
    def runs(self) -> bool:
        """Whether the op runs here now."""
        return self.reason is None and is_fused(self.owner)


Names = dict[str, tuple[str, ...]]


@dataclass(frozen=True)
class PatchReport:
    """Qualified module names: `patched` by op, `left` and `lost` by reason. `print(report)` is a table.

    Attributes:
        patched: what this call changed.
        left: every norm, activation and attention of the model that no op does, and why.
        lost: what an earlier call had changed and runs no op any more: a library has replaced it since.
        served: how many of the model's norms, activations and attentions an op does, of this call or an earlier one.
        places: how many there are.
    """

    patched: Names
    left: Names
    lost: Names = field(default_factory=dict)
    served: int = 0
    places: int = 0

    @property
    def count(self) -> int:
        """Modules that run a fused op since this call."""
        return sum(map(len, self.patched.values()))

    def __str__(self) -> str:
        if not (self.patched or self.left or self.lost or self.served):
            return "nothing in this model that vdiff_fast.patch knows"
        lines = [_line(op, names) for op, names in sorted(self.patched.items())]
        lines += [_line("lost since", names, f"{reason}: ") for reason, names in sorted(self.lost.items())]
        lines += [_line("left as it was", names, f"{reason}: ") for reason, names in sorted(self.left.items())]
        lines.append(f"{'served':<20} {self.served:>4}  of {self.places} norms, activations and attentions")
        return "\n".join(lines)


def grouped(pairs: Iterable[tuple[str, str]]) -> Names:
    """(key, module name) by key."""
    names = defaultdict(list)
    for key, name in pairs:
        names[key].append(name or ITSELF)
    return {key: tuple(values) for key, values in names.items()}


def _line(what: str, names: tuple[str, ...], reason: str = "") -> str:
    return f"{what:<20} {len(names):>4}  {reason}{', '.join(names[:2])}{', ...' if len(names) > 2 else ''}"
