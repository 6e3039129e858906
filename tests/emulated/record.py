"""What a run showed, as a file of benchmarks/results/ from which docs/performance/emulated_contract.md is written."""

from __future__ import annotations

import json
import os
import platform
from collections import defaultdict
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tests.emulated import report
from tests.emulated.cases import Case
from tests.emulated.run import Result

FOLDER = "benchmarks/results/emulated-contract"
RESULTS = Path(__file__).resolve().parents[2] / FOLDER


def code(case: Case) -> str:
    """What the case's kernels were compiled for: sm_80, or sm_90a, as Triton names it too."""
    return {80: "sm_80", 90: "sm_90a"}[case.architecture]


def rows(results: Sequence[Result]) -> list[dict[str, Any]]:
    """For each op, dtype and code: cases that ran, how many were right, and how many failed in which way."""
    groups: dict[tuple[str, str, str], list[Result]] = defaultdict(list)
    for result in results:
        groups[result.case.op, result.case.dtype, code(result.case)].append(result)
    return [
        {"op": op, "dtype": dtype, "code": target, **report.counts(found)}
        for (op, dtype, target), found in sorted(groups.items())
    ]


def document(backend: str, part: str, results: Sequence[Result], kernels: set[str]) -> dict[str, Any]:
    """The run as it is kept.

    Args:
        part: which cases: "quick", or the groups of samples.
        kernels: all that were built.
    """
    compiler = f"Triton {version('triton')}" if backend == "triton" else "CUDA C++"
    return {
        "backend": backend,
        "compiler": compiler,
        "torch": version("torch"),
        "python": platform.python_version(),
        "part": part,
        "devices": sorted({r.case.device for r in results}),
        "cases": len(results),
        "warp_instructions": sum(r.instructions for r in results),
        "processor_seconds": round(sum(r.seconds for r in results)),
        "kernels": len(kernels),
        "never_launched": report.never_launched(kernels, results),
        "failures": {str(r.case): _reason(r) for r in results if not r.passed},
        "rows": rows(results),
    }


def _reason(result: Result) -> str:
    said = [getattr(result, name) for name in ("wrong", "changing", "raised") if getattr(result, name)]
    said += [f"{p['kind']} in {p['kernel']}: {p['what']}" for p in result.problems[:1]]
    return "; ".join(line.strip().splitlines()[-1] if "Traceback" in line else line for line in said)[:400]


def path_of(document: Mapping[str, Any]) -> Path:
    compiler = document["compiler"].lower().replace(" ", "-").replace("+", "p")
    return RESULTS / f"{compiler}.json"


def write(document: Mapping[str, Any]) -> Path:
    """Replace what was kept of this compiler, whole or not at all."""
    path = path_of(document)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".new")
    unfinished.write_text(json.dumps(document, indent=1) + "\n")
    os.replace(unfinished, path)
    return path
