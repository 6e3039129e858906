"""A small share of `python -m tests.mutated_videos`: nothing crashes, hangs, raises or reads two ways."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from tests import mutated_videos


def test_damaged_files_are_read_or_refused_with_a_reason(tmp_path: Path) -> None:
    results = mutated_videos.run(tmp_path, count=19, seed=3)
    assert len(results) == 19
    assert not mutated_videos.faults(results), mutated_videos.report(results)
    assert {result["verdict"] for result in results} >= {"bad", "ok"}
    assert all(result["reason"] for result in results if result["verdict"] == "bad")


def test_whole_files_are_accepted_and_right(tmp_path: Path) -> None:
    """Otherwise the above would show nothing."""
    bases = mutated_videos.write_bases(tmp_path)
    assert len(bases) >= 18
    for path in bases:
        whole = mutated_videos.decode_whole(path)
        result = mutated_videos.examine(path, whole)
        assert result["verdict"] == "ok", (path, result)
        assert max(result["distances"]) == 0
        assert "window" not in result
        levels = 40 if path.suffix == ".gif" else 8
        assert np.abs(whole.astype(int) - mutated_videos.pictures()[: len(whole)]).mean() < levels


def test_the_same_seed_damages_alike(tmp_path: Path) -> None:
    (tmp_path / "base.bin").write_bytes(bytes(range(256)) * 20)
    contents = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        (tmp_path / name).mkdir()
        paths = mutated_videos.write_mutated([tmp_path / "base.bin"], tmp_path / name, 20, seed)
        contents.append([path.read_bytes() for path in paths])
    assert contents[0] == contents[1] != contents[2]
    assert len(set(contents[0])) > 15


SERVER = """
import json, os, sys, time
for path in sys.argv[1:]:
    print(json.dumps({"begins": path}), flush=True)
    if "crash" in path:
        os.abort()
    if "hang" in path:
        time.sleep(100)
    print(json.dumps({"path": path, "verdict": "ok", "reason": "", "mib": 0.0}), flush=True)
"""


def test_a_process_that_dies_or_hangs_is_told_by_its_file(tmp_path: Path) -> None:
    """The examiner goes on with the next file in a new process."""
    names = ["good1", "crash1", "good2", "hang", "crash2", "good3"]
    command = [sys.executable, "-c", SERVER]
    results = list(mutated_videos.examine_all([Path(name) for name in names], command, seconds=5.0))
    found = {result["path"]: result["verdict"] for result in results}
    assert found == {name: {"g": "ok", "c": "crash", "h": "hang"}[name[0]] for name in names}
    assert len(mutated_videos.faults(results)) == 3
