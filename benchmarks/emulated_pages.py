"""The pages about what gpu_emulator showed: the contract of the compiled kernels, and what they move and issue."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.emulated_reasons import reason

DASH = "—"
AS_THE_LEAST = (0.95, 1.10)  # what moves less or more has a reason
# Folders of benchmarks/results/ that no machine has timed.
COUNTERS, CONTRACT = "emulated-h200", "emulated-contract"

_COUNTERS = """# What the kernels move and issue

Counted in `gpu_emulator`, which executes the compiled PTX on a CPU: bfloat16, the code and the launches of an H200.
**Nothing on this page was timed, and nothing ran on a GPU.** `python -m benchmarks.counters` writes the figures.

- **of the least**: bytes that the launches of a pass read from DRAM and write to it, through an L2 of 50 MB that is
  empty at the start, divided by the least: every input read once, every output written once. Above {most} the reason
  stands below the table.
- **instructions**: PTX instructions of a thread for each element of the largest tensor. The machine code that ptxas
  makes has fewer or more.
- **load**, **store**: 32-byte sectors for each request of a warp: 16 where each thread moves 16 bytes side by side.
- **shared**: wavefronts for each request to shared memory: above 1 are bank conflicts.

The last three are those of the pass's kernel with most instructions. What is counted for an element does not depend on
the batch (compare `dit_xl` with `latte`, which is the same layer with twice the samples; `tests/bench/test_counters.py`
does), so of layers that are too large to be emulated whole a smaller one of the same path stands here.
"""


def pages(results: Path) -> dict[str, str]:
    """Pages by their path below docs/performance/, of the results that are there."""
    found = {}
    if (results / COUNTERS).is_dir():
        found["emulated_counters.md"] = counters_page(_documents(results / COUNTERS))
    if (results / CONTRACT).is_dir():
        found["emulated_contract.md"] = contract_page(_documents(results / CONTRACT))
    return found


def _documents(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]


def moved(row: dict[str, Any]) -> float:
    """Bytes read and written, as a multiple of the least."""
    return float((row["read_bytes"] + row["written_bytes"]) / row["least_bytes"])


def counters_page(documents: Sequence[dict[str, Any]]) -> str:
    from benchmarks.performance_pages import GENERATED

    parts = [GENERATED, _COUNTERS.format(most=f"{AS_THE_LEAST[1]:.2f}")]
    for document in documents:
        parts.append(_op_section(document))
    return "\n".join(parts)


def _op_section(document: dict[str, Any]) -> str:
    rows = document["rows"]
    environment = document["environment"]
    versions = f"torch {environment['torch']}, Triton {environment['triton']}, commit {environment['commit']}"
    lines = [
        f"## {rows[0]['op']}\n\n{versions}.\n",
        "| case | backend | direction | MB at least | of the least | instructions | load | store | shared |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    reasons: dict[str, None] = {}
    for row in rows:
        if "note" in row:
            continue
        mark = ""
        if not AS_THE_LEAST[0] <= moved(row) <= AS_THE_LEAST[1]:
            reasons[reason(row)] = None
            mark = f" ({list(reasons).index(reason(row)) + 1})"
        lines.append(_line(row, mark))
    large = dict.fromkeys(row["case"] for row in rows if "note" in row)
    text = "\n".join(lines) + "\n"
    text += "".join(f"\n({number}) {sentence}\n" for number, sentence in enumerate(reasons, start=1))
    return text + (f"\nToo large to be emulated whole: {', '.join(large)}.\n" if large else "")


def _line(row: dict[str, Any], mark: str) -> str:
    main = max(row["kernels"], key=lambda kernel: kernel["instructions_per_element"])
    ratios = [main[key] for key in ("load_sectors_per_request", "store_sectors_per_request", "wavefronts_per_request")]
    cells = [
        row["case"],
        row["backend"],
        row["direction"],
        f"{row['least_bytes'] / 1e6:.2f}",
        f"{moved(row):.2f}{mark}",
        f"{row['instructions_per_element']:.1f}",
        *(DASH if ratio is None else f"{ratio:.1f}" for ratio in ratios),
    ]
    return f"| {' | '.join(cells)} |"


_CONTRACT = """# The contract of the compiled kernels

The specs' samples, forward and backward, executed in gpu_emulator as the PTX that nvcc and Triton's compiler make:
values and gradients against float64, every memory access and every pair of accesses checked, two orders of warps and
blocks that must give the same bits. **Nothing ran on a GPU.** `python -m tests.emulated cuda --record` and
`python -m tests.emulated triton --record` write the figures; with `--quick` a short list of the cases runs.
The races of Triton's kernels are of lanes that rounded one sum in two ways; since commit 7bf24c8 the kernels round
products first, and the figures have not been recorded again.

A cell is the number of cases, all of them right, without a race, a memory fault or a refused launch; else what was not.
"""
_FAILURES = ("wrong", "race", "memory", "launch", "fault", "changing", "raised")


def contract_page(documents: Sequence[dict[str, Any]]) -> str:
    from benchmarks.performance_pages import GENERATED

    parts = [GENERATED, _CONTRACT, _totals(documents), "## Cases by op and dtype\n", _cases(documents)]
    failures = {case: said for document in documents for case, said in document["failures"].items()}
    if failures:
        parts.append("## What failed\n")
        parts.append("\n".join(f"- `{case}`: {said}" for case, said in sorted(failures.items())) + "\n")
    return "\n".join(parts)


def _totals(documents: Sequence[dict[str, Any]]) -> str:
    lines = [
        "| compiler | cases | right | races | memory faults | refused launches | kernels launched of built | devices | "
        "groups of samples | million warp instructions |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for document in documents:
        sums = {
            key: sum(row[key] for row in document["rows"]) for key in ("samples", "pass", "race", "memory", "launch")
        }
        launched = document["kernels"] - len(document["never_launched"])
        cells = [
            document["compiler"], *sums.values(), f"{launched} of {document['kernels']}",
            ", ".join(document["devices"]), document["part"], round(document["warp_instructions"] / 1e6),
        ]  # fmt: skip
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines) + "\n"


def _cases(documents: Iterable[dict[str, Any]]) -> str:
    cells: dict[tuple[str, str], dict[str, str]] = defaultdict(dict)
    for document in documents:
        for row in document["rows"]:
            failed = [f"{row[kind]} {kind}" for kind in _FAILURES if row[kind]]
            cell = ", ".join([str(row["samples"]), *failed])
            cells[row["op"], row["dtype"]][f"{document['compiler']} {row['code']}"] = cell
    columns = sorted({column for found in cells.values() for column in found})
    lines = [f"| op | dtype | {' | '.join(columns)} |", f"| --- | --- |{' --- |' * len(columns)}"]
    for (op, dtype), found in sorted(cells.items()):
        lines.append(f"| {op} | {dtype} | {' | '.join(found.get(column, DASH) for column in columns)} |")
    return "\n".join(lines) + "\n"
