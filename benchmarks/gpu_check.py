"""Everything a GPU is needed for, in one command that ends within 10 minutes: `make gpu-check`, or
`PART=tests,ops python -m benchmarks.gpu_check`.

It uses the Python that is active and no network. Wheels found in `.whl/` are used if they are there. Each part has a
time limit of its own and a result of its own, so a run can be resumed by part. Results are JSON under
benchmarks/results/<machine>/, whole logs under build/gpu_check/; the last 60 lines are the summary. Without a GPU it
does what can be done: build, peers' imports, AOT cubins, collection, and the summary of recorded results.
"""

from __future__ import annotations

import ctypes
import glob
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from vdiff_fast.bench.report import summary_lines

ROOT = Path(__file__).resolve().parents[1]
RESULTS = Path(os.environ.get("VDIFF_FAST_RESULTS", ROOT / "benchmarks" / "results"))
LOGS = ROOT / "build" / "gpu_check"
PEERS = ("triton", "diffusers", "xformers", "liger_kernel")
HAS_GPU = torch.cuda.is_available()


@dataclass
class Outcome:
    """What one part did: a line for the summary, and the end of its output."""

    part: str
    status: str
    seconds: float
    tail: list[str]


def _run(part: str, command: list[str], limit: float, environment: dict[str, str], keep: int = 12) -> Outcome:
    start = time.perf_counter()
    try:
        done = subprocess.run(
            command,
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=limit,
        )
        status, output = ("ok" if done.returncode == 0 else f"exit {done.returncode}"), done.stdout
    except subprocess.TimeoutExpired as error:
        raw = error.stdout or b""
        output = raw.decode(errors="replace") if isinstance(raw, bytes) else raw
        status = f"stopped after {limit:.0f} s"
    LOGS.mkdir(parents=True, exist_ok=True)
    (LOGS / f"{part}.log").write_text(output)
    return Outcome(part, status, time.perf_counter() - start, output.strip().splitlines()[-keep:])


def install_wheels(environment: dict[str, str]) -> dict[str, str]:
    """Wheels of peers, unpacked beside the installed packages, never over them."""
    wheels = sorted(glob.glob(str(ROOT / ".whl" / "*.whl")))
    if not wheels:
        return environment
    target = Path(tempfile.gettempdir()) / "vdiff_fast_peers"
    command = [sys.executable, "-m", "pip", "install", "-q", "--no-index", "--no-deps", "--no-compile", "--upgrade"]
    subprocess.run([*command, "--target", str(target), *wheels], check=True)
    # xformers' wheel was built for CUDA 12: its runtime has to be loaded before it.
    for library in target.glob("nvidia/cuda_runtime/lib/libcudart.so.12"):
        ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)
        environment["LD_LIBRARY_PATH"] = f"{library.parent}:{environment.get('LD_LIBRARY_PATH', '')}"
    environment["PYTHONPATH"] = f"{target}:{environment.get('PYTHONPATH', '')}"
    return environment


def part_build(environment: dict[str, str]) -> Outcome:
    """Build here, unless a library was carried along that loads."""
    if (ROOT / "vdiff_fast" / "_lib" / "libvdiff_fast_cuda.so").exists():
        probe = "from vdiff_fast import _library as l; print(l.CPU.reason, l.CUDA.reason); assert not l.CPU.reason"
        carried = _run("build", [sys.executable, "-c", probe], 60, environment)
        if carried.status == "ok":
            return carried
    return _run("build", [sys.executable, "vdiff_fast/_build.py"], 240, environment)


def part_peers(environment: dict[str, str]) -> Outcome:
    """Which libraries to measure against import here, and which not and why."""
    lines = []
    for name in PEERS:
        probe = [sys.executable, "-c", f"import {name}; print('{name}', {name}.__version__)"]
        one = _run(f"peers_{name}", probe, 60, environment)
        lines.append(one.tail[-1] if one.status == "ok" and one.tail else f"{name}: {(one.tail or ['no output'])[-1]}")
    return Outcome("peers", "ok", 0.0, lines)


def part_aot(environment: dict[str, str]) -> Outcome:
    """Every Triton kernel compiled to cubins: the most that can be shown without a GPU."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/test_aot.py"]
    return _run("aot", command, 400, environment, keep=4)


def part_tests(environment: dict[str, str]) -> Outcome:
    """Every test that needs a GPU; without one, that they can be collected."""
    command = [sys.executable, "-m", "pytest", "-q", "--maxfail=25", "-m", "gpu", "-p", "no:cacheprovider"]
    if not HAS_GPU:
        return _run("tests", [*command, "--collect-only"], 240, environment, keep=2)
    return _run("tests", command, 200, environment, keep=25)


def part_sanitizer(environment: dict[str, str]) -> Outcome:
    """compute-sanitizer on the smallest contract sample of the CUDA C++ kernels."""
    program = shutil.which("compute-sanitizer")
    if program is None:
        return Outcome("sanitizer", "not run: compute-sanitizer is not on PATH", 0.0, [])
    command = [program, "--error-exitcode", "9", sys.executable, "-m", "benchmarks.one_call", "--backend", "cuda"]
    return _run("sanitizer", command, 90, environment)


def part_bytes(environment: dict[str, str]) -> Outcome:
    """Bytes that the norm's kernels read and write in device memory, by ncu: does one pass read its input once?"""
    program = shutil.which("ncu")
    if program is None:
        return Outcome("bytes", "not run: ncu is not on PATH", 0.0, [])
    metrics = "dram__bytes_read.sum,dram__bytes_write.sum"
    command = [program, "--clock-control", "none", "--metrics", metrics, sys.executable, "-m", "benchmarks.one_call"]
    return _run("bytes", [*command, "--op", "group_norm_silu", "--largest"], 90, environment, keep=20)


def part_ops(environment: dict[str, str]) -> Outcome:
    """Every op against its peers."""
    command = [sys.executable, "-m", "benchmarks.run", "ops", "--device", "cuda", "--seconds", "0.2"]
    return _run("ops", [*command, "--out", str(RESULTS), "--limit", "150"], 200, environment, keep=30)


def part_models(environment: dict[str, str]) -> Outcome:
    """A training step and a sampling step of the models, fused against reference against compile."""
    command = [sys.executable, "-m", "benchmarks.run", "models", "--device", "cuda", "--out", str(RESULTS)]
    return _run("models", command, 150, environment, keep=12)


def part_tune(environment: dict[str, str]) -> Outcome:
    """The table that `auto` reads, for this architecture."""
    code = "import torch; from vdiff_fast.bench.tune import tune; print(tune(None, torch.device('cuda'), seconds=0.1))"
    return _run("tune", [sys.executable, "-c", code], 150, environment, keep=2)


PARTS: dict[str, Callable[[dict[str, str]], Outcome]] = {
    "build": part_build,
    "peers": part_peers,
    "aot": part_aot,
    "tests": part_tests,
    "sanitizer": part_sanitizer,
    "bytes": part_bytes,
    "ops": part_ops,
    "models": part_models,
    "tune": part_tune,
}
# AOT stands in for a GPU; the others mean nothing without one.
WITHOUT_GPU = ("build", "peers", "aot", "tests")
WITH_GPU = tuple(part for part in PARTS if part != "aot")


def main() -> int:
    wanted = [part for part in os.environ.get("PART", "").split(",") if part]
    unknown = [part for part in wanted if part not in PARTS]
    if unknown:
        print(f"PART={','.join(unknown)}: unknown; choose from {', '.join(PARTS)}")
        return 2
    runs = WITH_GPU if HAS_GPU else WITHOUT_GPU
    environment = install_wheels(dict(os.environ))
    outcomes = []
    for part in wanted or (WITH_GPU if HAS_GPU else PARTS):
        print(f"== {part}", flush=True)
        runnable = part in runs or (part in wanted and HAS_GPU)
        outcomes.append(PARTS[part](environment) if runnable else Outcome(part, "not run: no CUDA device", 0.0, []))
    lines = [line for outcome in outcomes for line in _summary(outcome)] + recorded()
    if HAS_GPU:
        (RESULTS / "gpu_check.json").write_text(json.dumps([o.__dict__ for o in outcomes], indent=1) + "\n")
    print("\n".join(lines[-60:]))
    return 0 if all(o.status == "ok" or o.status.startswith("not run") for o in outcomes) else 1


def recorded() -> list[str]:
    """Summary lines of the GPU results that are on disk."""
    lines = []
    for path in sorted(RESULTS.glob("*/*.json")):
        document = json.loads(path.read_text())
        if "rows" in document and "device" in document["environment"]:
            lines += [f"{path.parent.name}  {line}" for line in summary_lines(document["rows"])]
    return ["== recorded GPU results", *(lines or ["   none: not measured"])]


def _summary(outcome: Outcome) -> list[str]:
    return [f"== {outcome.part}: {outcome.status} ({outcome.seconds:.0f} s)", *(f"   {line}" for line in outcome.tail)]


if __name__ == "__main__":
    sys.exit(main())
