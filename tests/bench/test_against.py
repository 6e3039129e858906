"""Comparison of two commits: verdicts beyond the noise, and a worktree that leaves nothing behind."""

from __future__ import annotations

import subprocess

import pytest
import torch

from vdiff_fast.bench import against
from vdiff_fast.bench.against import Comparison


@pytest.mark.parametrize(
    ("here", "there", "noise", "verdict"),
    [(1.0, 1.0, 0.0, "same"), (1.0, 1.2, 0.05, "faster"), (1.2, 1.0, 0.05, "slower"), (1.2, 1.0, 0.3, "same"),
     (1.02, 1.0, 0.0, "same")],
)  # fmt: skip
def test_a_difference_counts_beyond_the_noise(here: float, there: float, noise: float, verdict: str) -> None:
    assert Comparison("op/case", here, there, noise).verdict == verdict


def test_noise_is_the_spread_over_the_rounds() -> None:
    rounds = [{"a": 1.0}, {"a": 1.1}, {"a": 1.0}], [{"a": 2.0}, {"a": 2.0}, {"a": 2.0}]
    found = against._comparison("a", *rounds)
    assert found.noise == pytest.approx(0.1)
    assert found.speedup == 2.0
    assert found.verdict == "faster"


def test_an_unknown_commit_is_named_before_anything_is_timed() -> None:
    with pytest.raises(ValueError, match="--against no-such-commit: no such commit"):
        against.compare("geglu", "no-such-commit", torch.device("cpu"))


def test_one_side_times_every_case_of_an_op() -> None:
    times = against._times(against.ROOT, "q_sample", torch.device("cpu"), 0.001)
    assert times
    assert all(case.startswith("q_sample/") and ms > 0 for case, ms in times.items())


def test_the_other_tree_is_removed(monkeypatch: pytest.MonkeyPatch) -> None:
    if subprocess.run(["git", "rev-parse", "HEAD"], cwd=against.ROOT, capture_output=True).returncode != 0:
        pytest.skip("not a git checkout")
    real = subprocess.run
    monkeypatch.setattr(
        against.subprocess, "run",
        lambda command, **k: None if "_build.py" in command[-1] else real(command, **k),
    )  # fmt: skip
    with against.checkout("HEAD", lambda line: None) as tree:
        assert (tree / "vdiff_fast" / "_spec.py").exists()
    assert not tree.exists()
    listed = real(["git", "worktree", "list"], cwd=against.ROOT, capture_output=True, text=True).stdout
    assert str(tree) not in listed
