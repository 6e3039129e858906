"""Tables of the results: a row per op, dtype and device, every failure, kernels that no case launched."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from tests.emulated.run import Result

COLUMNS = ("samples", "pass", "wrong", "memory", "race", "launch", "fault", "changing", "raised", "refused")
_WIDTHS = (28, 9, 8)


def counts(results: Sequence[Result]) -> dict[str, int]:
    """How many cases there are, and how many failed in each way."""
    found = {"samples": len(results), "pass": sum(r.passed and not r.refused for r in results)}
    found |= {kind: sum(kind in r.kinds for r in results) for kind in ("memory", "race", "launch", "fault")}
    return found | {
        name: sum(bool(getattr(r, name)) for r in results) for name in ("wrong", "changing", "raised", "refused")
    }


def _row(names: Sequence[str], cells: Sequence[object]) -> str:
    left = "  ".join(name.ljust(width) for name, width in zip(names, _WIDTHS))
    return left + "".join(str(cell).rjust(10) for cell in cells)


def table(results: Sequence[Result]) -> str:
    """Rows of an op, dtype and device; what is nothing is a dot."""
    rows: dict[tuple[str, str, str], list[Result]] = defaultdict(list)
    for result in results:
        rows[result.case.op, result.case.dtype, result.case.device].append(result)
    lines = [_row(("op", "dtype", "device"), (*COLUMNS, "seconds"))]
    for key in sorted(rows):
        found = counts(rows[key])
        seconds = f"{sum(r.seconds for r in rows[key]):.0f}"
        lines.append(_row(key, (*(found[name] or "." for name in COLUMNS), seconds)))
    total = counts(results)
    lines.append(_row(("all", "", ""), (*(total[name] or "." for name in COLUMNS), "")))
    return "\n".join(lines)


def failures(results: Sequence[Result]) -> str:
    """Every case that failed; what a kernel did wrong is told whole once."""
    lines: list[str] = []
    told: set[tuple[str, str]] = set()
    for result in results:
        if result.passed:
            continue
        lines.append(f"\n{result.case}")
        lines += [
            f"  {name}: {getattr(result, name)}" for name in ("wrong", "changing", "raised") if getattr(result, name)
        ]
        for problem in result.problems:
            key = problem["kernel"], problem["what"][:60]
            what = "" if key in told else f"\n    {problem['what']}"
            told.add(key)
            lines.append(f"  {problem['kind']} in {problem['kernel']} (schedule {problem['schedule']}){what}")
    return "\n".join(lines)


def never_launched(kernels: set[str], results: Sequence[Result]) -> list[str]:
    """Kernels that were built and that no case launched."""
    return sorted(kernels.difference(*(result.launched for result in results)))
