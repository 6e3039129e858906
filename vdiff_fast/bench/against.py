"""Compare this tree with another commit, op by op: `vdiff-fast bench --against main`."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[2]
TIMER = Path(__file__).with_name("ours.py")
# A difference this small is never called one, however quiet the machine was.
LEAST_DIFFERENCE = 0.03


@dataclass(frozen=True)
class Comparison:
    """One benchmark case in two trees, forward and backward where there is one.

    Attributes:
        here_ms, there_ms: medians over the rounds.
        noise: the larger of both trees' spread over the rounds, (largest - smallest) / median.
    """

    case: str
    here_ms: float
    there_ms: float
    noise: float

    @property
    def speedup(self) -> float:
        """Above 1 where this tree is faster."""
        return self.there_ms / self.here_ms

    @property
    def verdict(self) -> str:
        """ "slower" or "faster" beyond the noise, else "same"."""
        margin = max(self.noise, LEAST_DIFFERENCE)
        if self.speedup < 1 / (1 + margin):
            return "slower"
        return "faster" if self.speedup > 1 + margin else "same"


def compare(
    op: str | None, commit: str, device: torch.device, *, rounds: int = 3, seconds: float = 0.3,
    progress: Callable[[str], None] = lambda line: None,
) -> list[Comparison]:  # fmt: skip
    """Time both trees in turn, each in processes of its own, `rounds` times.

    Raises:
        ValueError: this is no git checkout, or it has no such commit; nothing is timed.
    """
    here: list[dict[str, float]] = []
    there: list[dict[str, float]] = []
    with checkout(commit, progress) as tree:
        for round_ in range(rounds):
            progress(f"round {round_ + 1} of {rounds}")
            here.append(_times(ROOT, op, device, seconds))
            there.append(_times(tree, op, device, seconds))
    return [_comparison(case, here, there) for case in here[0] if case in there[0]]


def _comparison(case: str, here: list[dict[str, float]], there: list[dict[str, float]]) -> Comparison:
    ours, theirs = ([times[case] for times in rounds] for rounds in (here, there))
    spread = max((max(v) - min(v)) / statistics.median(v) for v in (ours, theirs))
    return Comparison(case, statistics.median(ours), statistics.median(theirs), spread)


@contextmanager
def checkout(commit: str, progress: Callable[[str], None]) -> Iterator[Path]:
    """A built tree of another commit, removed afterwards."""
    known = subprocess.run(
        ["git", "rev-parse", "--verify", "--quiet", f"{commit}^{{commit}}"], cwd=ROOT, capture_output=True, text=True
    )
    if known.returncode != 0:
        raise ValueError(f"--against {commit}: no such commit in {ROOT}; it must be a git checkout that has it")
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "tree"
        subprocess.run(
            ["git", "worktree", "add", "-q", "--detach", str(tree), known.stdout.strip()], cwd=ROOT, check=True
        )
        try:
            progress(f"building {commit}")
            subprocess.run([sys.executable, "vdiff_fast/_build.py"], cwd=tree, check=True, stdout=subprocess.DEVNULL)
            yield tree
        finally:
            subprocess.run(["git", "worktree", "remove", "--force", str(tree)], cwd=ROOT, check=True)


def _times(tree: Path, op: str | None, device: torch.device, seconds: float) -> dict[str, float]:
    command = [sys.executable, str(TIMER), op or "", device.type, str(seconds)]
    environment = os.environ | {"PYTHONPATH": str(tree)}
    done = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"timing {tree} failed: {done.stderr.strip().splitlines()[-1]}")
    return dict(json.loads(done.stdout.splitlines()[-1]))
