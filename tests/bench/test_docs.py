"""The generated pages are what the results and the predicates say."""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks.docs import ROOT, stale
from benchmarks.performance_pages import Machine, summary


def test_generated_pages_are_fresh() -> None:
    assert [str(path.relative_to(ROOT)) for path in stale()] == [], "run make docs"


def test_ops_of_different_commits_stand_in_different_tables(tmp_path: Path) -> None:
    row = {"op": "a", "case": "c", "dtype": "float32", "direction": "forward", "median_ms": 1.0, "note": ""}
    rows = [row | {"implementation": "vdiff_fast"}, row | {"implementation": "eager", "median_ms": 0.5}]
    environment = {"torch": "2", "triton": "3", "threads": 2, "cpu": "CPU", "date": "today"}
    folder = tmp_path / "cpu-some-avx2-2"
    folder.mkdir()
    for op, commit in (("a", "1234567"), ("b", "89abcde")):
        document = {"environment": environment | {"commit": commit}, "rows": [r | {"op": op} for r in rows]}
        (folder / f"{op}.json").write_text(json.dumps(document))
    text = summary([Machine.read(folder)])
    first, second = text.index("commit 1234567"), text.index("commit 89abcde")
    assert first < text.index("[`a`]") < second < text.index("[`b`]")
    assert "| 0.50 | — | — | — | 0.50 | 1 |" in text, "a loss is printed like a gain"
