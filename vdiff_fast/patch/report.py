"""What patching found: which modules run which op, and which were left, with the reason."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass

# The name of the module that was given.
ITSELF = "(the model)"


@dataclass(frozen=True)
class Finding:
    """One place in a model that an op can take over.

    Args:
        module: its qualified name.
        op: the op.
        apply: makes the change.
        reason: why it is left as it is; None if it is not.
    """

    module: str
    op: str
    apply: Callable[[], None]
    reason: str | None = None


@dataclass(frozen=True)
class PatchReport:
    """Qualified module names: `patched` by op, `left` by reason. `print(report)` is a table."""

    patched: dict[str, tuple[str, ...]]
    left: dict[str, tuple[str, ...]]

    @classmethod
    def of(cls, findings: list[Finding]) -> PatchReport:
        patched, left = defaultdict(list), defaultdict(list)
        for finding in findings:
            if finding.reason is None:
                patched[finding.op].append(finding.module or ITSELF)
            else:
                left[finding.reason].append(finding.module or ITSELF)
        return cls({k: tuple(v) for k, v in patched.items()}, {k: tuple(v) for k, v in left.items()})

    @property
    def count(self) -> int:
        """Modules that run a fused op now."""
        return sum(map(len, self.patched.values()))

    def __str__(self) -> str:
        if not self.patched and not self.left:
            return "nothing in this model that vdiff_fast.patch knows"
        lines = [_line(op, names) for op, names in sorted(self.patched.items())]
        lines += [_line("left as it was", names, f"{reason}: ") for reason, names in sorted(self.left.items())]
        return "\n".join(lines)


def _line(what: str, names: tuple[str, ...], reason: str = "") -> str:
    return f"{what:<20} {len(names):>4}  {reason}{', '.join(names[:2])}{', ...' if len(names) > 2 else ''}"
