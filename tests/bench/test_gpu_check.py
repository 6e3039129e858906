"""The GPU check without a GPU: time limits, kept output, shares of the time, and which tests it runs."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import pytest

from benchmarks import gpu_check

REPORTS_WHEN_INTERRUPTED = """
import subprocess, sys, time
print("begun", flush=True)
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], stderr=subprocess.DEVNULL)
print("child", child.pid, flush=True)
try:
    time.sleep(60)
except KeyboardInterrupt:
    print("what was done", flush=True)
"""


@pytest.fixture(autouse=True)
def logs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(gpu_check, "LOGS", tmp_path)
    return tmp_path


def test_a_part_that_is_stopped_keeps_its_output_and_leaves_no_process(logs: Path) -> None:
    outcome = gpu_check._run("slow", [sys.executable, "-c", REPORTS_WHEN_INTERRUPTED], 6.0, dict(os.environ))
    assert outcome.status == "stopped after 6 s"
    assert outcome.tail[0] == "begun"
    assert "what was done" in outcome.tail
    assert (logs / "slow.log").read_text().splitlines() == outcome.tail
    child = Path("/proc") / outcome.tail[1].split()[1] / "stat"
    deadline = time.monotonic() + 10
    while child.exists() and child.read_text().rpartition(")")[2].split()[0] != "Z":
        assert time.monotonic() < deadline, "the child runs on"
        time.sleep(0.05)


def test_one_that_ignores_the_interrupt_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_check, "GRACE_SECONDS", 0.3)
    code = """
import signal, time
signal.signal(signal.SIGINT, signal.SIG_IGN)
print("begun", flush=True)
time.sleep(60)
print("ended by itself")
"""
    outcome = gpu_check._run("stuck", [sys.executable, "-c", code], 5.0, dict(os.environ))
    assert outcome.status == "stopped after 5 s"
    assert outcome.tail == ["begun"]


def test_a_measurement_that_a_fault_ended_is_resumed(tmp_path: Path) -> None:
    code = "import sys; print(sys.argv[1:]); sys.exit(0 if '--resume' in sys.argv else 1)"
    outcome = gpu_check._resumed("ops", [sys.executable, "-c", code], 100.0, dict(os.environ), 5, ("--resume",))
    assert outcome.status == "ok, ended early 1 times before"
    assert len(outcome.tail) == 2
    assert "--resume" in outcome.tail[1]


def test_shares_add_up_to_the_limit() -> None:
    left, parts = 530.0, list(gpu_check.WITH_GPU)
    for place, part in enumerate(parts):
        left -= gpu_check.share(left, parts[place:], part)
    assert left == pytest.approx(0.0)
    assert gpu_check.share(100.0, ["tests", "ops"], "tests") == pytest.approx(62.5)


def test_the_tests_part_names_every_failure() -> None:
    failed = [f"FAILED tests/test_contract.py::test_x[{i}] - RuntimeError: no kernel" for i in range(100)]
    report = gpu_check.test_report(["....", *failed, "100 failed in 3 s"])
    assert report[:100] == failed
    assert report[100].split(" x ") == ["  100", "RuntimeError: no kernel"]
    assert report[-1] == "100 failed in 3 s"


def test_only_files_with_gpu_tests_are_collected() -> None:
    files = gpu_check.gpu_test_files()
    assert {"tests/test_contract.py", "tests/ops/test_temporal_attention.py"} <= set(files)
    assert not any("cli" in file or "bench" in file for file in files)
