"""Which of the findings the caller wants, by the names of modules."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from fnmatch import fnmatchcase

from vdiff_fast.patch.report import Finding

EXCLUDED, NOT_INCLUDED = "excluded by the caller", "not included by the caller"


def patterns(function: str, name: str, given: Iterable[str] | None) -> tuple[str, ...]:
    """Patterns as a tuple; a string alone would be read letter by letter."""
    if isinstance(given, str):
        raise TypeError(
            f"{function}: {name} must be patterns of module names, got the string {given!r}; use [{given!r}]"
        )
    return tuple(given or ())


def chosen(findings: list[Finding], include: tuple[str, ...], exclude: tuple[str, ...]) -> Iterator[Finding]:
    """Every finding, with a reason where the caller does not want it.

    The forward of a module changes as a whole: what shares it with an excluded part is left, too.
    """
    out = {id(f.owner) for f in findings if any(_within(name, exclude) for name in (f.module, *f.covers))}
    for finding in findings:
        if id(finding.owner) in out:
            yield replace(finding, reason=EXCLUDED)
        elif include and not _within(finding.module, include):
            yield replace(finding, reason=NOT_INCLUDED)
        else:
            yield finding


def _within(name: str, wanted: tuple[str, ...]) -> bool:
    """Whether a module, or one that holds it, matches a pattern."""
    parts = name.split(" ")[0].split(".")
    above = [".".join(parts[: i + 1]) for i in range(len(parts))]
    return any(fnmatchcase(part, pattern) for part in above for pattern in wanted)
