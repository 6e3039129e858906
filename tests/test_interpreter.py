"""Triton kernels without a GPU: the interpreter in processes of its own, on the installed Triton and on the oldest.

The oldest Triton that is supported, and that GPU machines with torch 2.11 have, is looked for in `.cache/triton-3.6.0`
(`make test` installs it there).
"""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from vdiff_fast import _library

ROOT = Path(__file__).resolve().parent.parent
PINNED = ROOT / ".cache" / "triton-3.6.0"
# Against a hang alone: on two slow AVX2 cores the interpreter is at work for five minutes.
TIMEOUT_SECONDS = 1800

pytest.importorskip("triton", reason="Triton is not installed")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(_library.INTERPRETING, reason="this process is the interpreter's already"),
]
tritons = pytest.mark.parametrize(
    "triton",
    [
        pytest.param(None, id="installed"),
        pytest.param(
            PINNED,
            id=PINNED.name,
            marks=pytest.mark.skipif(not (PINNED / "triton").is_dir(), reason=f"{PINNED.name} is not in .cache"),
        ),
    ],
)


def run_marked(marker: str, triton: Path | None, *, interpret: bool, keyword: str = "") -> str:
    """The tests with this marker (and keyword) in a new process; its report. Fails when they fail or none ran."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("PYTEST_", "COV_"))}
    environment["TRITON_INTERPRET"] = "1" if interpret else "0"
    search = [str(p) for p in (triton, ROOT, environment.get("PYTHONPATH")) if p]
    environment["PYTHONPATH"] = os.pathsep.join(search)
    # Collecting the other files takes each process longer than many of the tests.
    files = [str(path) for path in sorted(ROOT.glob("tests/**/test_*.py")) if f"mark.{marker}" in path.read_text()]
    command = [
        sys.executable, "-m", "pytest", "-q", "-rf", "-m", marker, "-k", keyword, *files, "-p", "no:cacheprovider",
    ]  # fmt: skip
    if importlib.util.find_spec("xdist") is not None:
        command += ["-n", str(os.cpu_count() or 1)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=TIMEOUT_SECONDS)
    report = done.stdout[-20_000:] + done.stderr[-2_000:]
    print(report.strip().splitlines()[-1])
    passed = re.search(r"(\d+) passed", done.stdout)
    assert done.returncode == 0, report
    assert passed, f"no test marked {marker!r} ran:\n{report}"
    return report


@tritons
def test_kernels_in_the_interpreter(triton: Path | None) -> None:
    # Registration, layouts and forced tiles do not depend on Triton's version: the oldest runs what checks values.
    run_marked("interpreter", triton, interpret=True, keyword="test_as_close_to_float64_as_eager" if triton else "")


@tritons
def test_every_launch_of_the_contract_is_lowered(triton: Path | None) -> None:
    """The interpreter takes Python that no compiler takes: what follows a return, methods of an integer that is 1."""
    search = os.pathsep.join(str(path) for path in (triton, ROOT) if path)
    environment = os.environ | {"TRITON_INTERPRET": "0", "PYTHONPATH": search}
    command = [sys.executable, "-m", "tests.launches"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=TIMEOUT_SECONDS)
    print(done.stdout)
    assert done.returncode == 0, done.stderr[-5000:]


@pytest.mark.skipif(not (PINNED / "triton").is_dir(), reason=f"{PINNED.name} is not in .cache")
def test_kernels_compile_on_the_oldest_triton() -> None:
    """For the GPUs it is used with; test_aot.py compiles with the installed Triton, for the others too."""
    run_marked("aot", PINNED, interpret=False, keyword="sm_90")


@pytest.mark.skipif(not (PINNED / "triton").is_dir(), reason=f"{PINNED.name} is not in .cache")
def test_the_oldest_triton_is_the_one_imported() -> None:
    environment = os.environ | {"PYTHONPATH": str(PINNED)}
    code = "import triton; print(triton.__version__)"
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == PINNED.name.removeprefix("triton-")
