"""Everything a GPU is needed for, in one command that ends within 9 minutes: `make gpu-check`, or
`PART=tests,ops LIMIT=300 python -m benchmarks.gpu_check`.

It uses the Python that is active and no network. Wheels found in `.whl/` are used if they are there. LIMIT is the time
of the whole run in seconds; a part gets its share of what is left, says what it cut, and is recorded as soon as it ends
in benchmarks/results/<device>/gpu_check.json. Whole logs are under build/gpu_check/. VDIFF_FAST_RESULTS is the folder
of the results instead, then of the logs and of the measured tables too. Without a GPU it does what can be done: build,
peers' imports, AOT cubins, collection, and the summary of recorded results.
"""

from __future__ import annotations

import ctypes
import glob
import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from vdiff_fast import _measured
from vdiff_fast.bench.report import environment as facts
from vdiff_fast.bench.report import machine_name, summary_lines

ROOT = Path(__file__).resolve().parents[1]
ELSEWHERE = os.environ.get("VDIFF_FAST_RESULTS")
RESULTS = Path(ELSEWHERE).resolve() if ELSEWHERE else ROOT / "benchmarks" / "results"
LOGS = RESULTS / "logs" if ELSEWHERE else ROOT / "build" / "gpu_check"
TABLES = RESULTS / "tables" if ELSEWHERE else _measured.FOLDER
PEERS = ("triton", "diffusers", "xformers", "liger_kernel")
HAS_GPU = torch.cuda.is_available()
# What a process gets to report after SIGINT, and what a measurement begun before its deadline may still take.
GRACE_SECONDS, LAST_GROUP_SECONDS = 20.0, 15.0
# A part that a kernel's fault ended is resumed so often at most.
TRIES = 8

Part = Callable[[dict[str, str], float], "Outcome"]


@dataclass
class Outcome:
    """What one part did: a line for the summary, and the end of its output."""

    part: str
    status: str
    seconds: float
    tail: list[str]


def _run(part: str, command: list[str], limit: float, environment: dict[str, str], keep: int = 12) -> Outcome:
    """The command with its output in the part's log, interrupted at the limit and ended GRACE_SECONDS later."""
    start = time.perf_counter()
    LOGS.mkdir(parents=True, exist_ok=True)
    log = LOGS / f"{part}.log"
    with log.open("w") as output:
        # A session of its own, so that what it started ends with it.
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT, start_new_session=True,
            preexec_fn=_takes_interrupts,
        )  # fmt: skip
        try:
            code = process.wait(limit)
            status = "ok" if code == 0 else f"exit {code}"
        except subprocess.TimeoutExpired:
            status = f"stopped after {limit:.0f} s"
            _signal(process, signal.SIGINT)
            with suppress(subprocess.TimeoutExpired):
                process.wait(GRACE_SECONDS)
        finally:
            _signal(process, signal.SIGKILL)
            process.wait()
    lines = log.read_text(errors="replace").strip().splitlines()
    return Outcome(part, status, time.perf_counter() - start, lines[-keep:])


def _takes_interrupts() -> None:
    """A shell's background job ignores SIGINT, and so would all that it starts."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def _signal(process: subprocess.Popen[bytes], number: int) -> None:
    """To the process and all that it started and did not outlive it."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, number)


def _resumed(
    part: str, command: list[str], limit: float, environment: dict[str, str], keep: int, again: tuple[str, ...]
) -> Outcome:
    """The command, and where a kernel's fault ended it the same with `again`, as long as time is left."""
    end = time.perf_counter() + limit
    outcome = Outcome(part, "not run: no time left", 0.0, [])
    logs: list[str] = []
    for tried in range(TRIES):
        left = end - time.perf_counter()
        deadline = left - LAST_GROUP_SECONDS - GRACE_SECONDS
        if deadline < 0:
            break
        options = ["--deadline", f"{deadline:.0f}", *(again if tried else ())]
        outcome = _run(part, command + options, left - GRACE_SECONDS, environment, keep)
        logs.append((LOGS / f"{part}.log").read_text(errors="replace"))
        if outcome.status == "ok":
            break
    (LOGS / f"{part}.log").write_text("\n".join(logs))
    status = outcome.status if len(logs) <= 1 else f"{outcome.status}, ended early {len(logs) - 1} times before"
    lines = [line for log in logs for line in log.strip().splitlines()[-keep:]]
    return Outcome(part, status, limit - (end - time.perf_counter()), lines)


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


def part_build(environment: dict[str, str], limit: float) -> Outcome:
    """Build here, unless libraries were carried along that load; a CPU build of torch can load one of the two."""
    loaded = "not l.CPU.reason and (not l.CUDA.reason or torch.version.cuda is None)"
    code = f"import torch; from vdiff_fast import _library as l; print(l.CPU.reason, l.CUDA.reason); assert {loaded}"
    probe = [sys.executable, "-c", code]
    if (ROOT / "vdiff_fast" / "_lib" / "libvdiff_fast_cpu.so").exists():
        carried = _run("build", probe, 60, environment)
        if carried.status == "ok":
            return carried
    built = _run("build", [sys.executable, "vdiff_fast/_build.py"], limit, environment)
    if built.status != "ok":
        return built
    return _run("build_loads", probe, 60, environment)


def part_peers(environment: dict[str, str], limit: float) -> Outcome:
    """Which libraries to measure against import here, and which not and why."""
    lines = []
    start = time.perf_counter()
    for name in PEERS:
        probe = [sys.executable, "-c", f"import {name}; print('{name}', {name}.__version__)"]
        one = _run(f"peers_{name}", probe, max(30.0, limit / len(PEERS)), environment)  # a first import reads a disk
        lines.append(one.tail[-1] if one.status == "ok" and one.tail else f"{name}: {(one.tail or ['no output'])[-1]}")
    return Outcome("peers", "ok", time.perf_counter() - start, lines)


def part_aot(environment: dict[str, str], limit: float) -> Outcome:
    """Every Triton kernel compiled to cubins: the most that can be shown without a GPU."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/test_aot.py"]
    return _run("aot", command, limit, environment, keep=4)


def gpu_test_files() -> list[str]:
    """The files that have tests for a GPU; the others' imports may be missing on a bare machine."""
    files = sorted((ROOT / "tests").glob("**/test_*.py"))
    return [str(path.relative_to(ROOT)) for path in files if "pytest.mark.gpu" in path.read_text()]


def part_tests(environment: dict[str, str], limit: float) -> Outcome:
    """Every test that needs a GPU; without one, that they can be collected."""
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", "--tb=short", "-rfE"]
    command += ["--continue-on-collection-errors", *gpu_test_files()]
    if not HAS_GPU:
        return _run("tests", [*command, "--collect-only"], limit, environment, keep=2)
    if importlib.util.find_spec("xdist") is not None:
        command += ["-n", "12", "--dist", "worksteal", "--max-worker-restart", "100", "-p", "benchmarks.gpu_faults"]
    # pytest cuts the messages of its summary at the width of the terminal.
    outcome = _run("tests", command, limit - GRACE_SECONDS, environment | {"COLUMNS": "240"}, keep=1 << 30)
    outcome.tail = test_report(outcome.tail)
    return outcome


def test_report(lines: list[str]) -> list[str]:
    """pytest's summary: every failure, the number of failures by their message, and the last line."""
    failures = [line for line in lines if re.match("(FAILED|ERROR) ", line)]
    reasons = Counter(line.partition(" - ")[2][:100] or "no message" for line in failures)
    return [*failures, *(f"{count:5} x {reason}" for reason, count in reasons.most_common(20)), *lines[-3:]]


def part_sanitizer(environment: dict[str, str], limit: float) -> Outcome:
    """compute-sanitizer on the smallest contract sample of the CUDA C++ kernels."""
    program = shutil.which("compute-sanitizer")
    if program is None:
        return Outcome("sanitizer", "not run: compute-sanitizer is not on PATH", 0.0, [])
    command = [program, "--error-exitcode", "9", sys.executable, "-m", "benchmarks.one_call", "--backend", "cuda"]
    return _run("sanitizer", command, limit - GRACE_SECONDS, environment)


def part_bytes(environment: dict[str, str], limit: float) -> Outcome:
    """Bytes that the norm's kernels read and write in device memory, by ncu: does one pass read its input once?"""
    program = shutil.which("ncu")
    if program is None:
        return Outcome("bytes", "not run: ncu is not on PATH", 0.0, [])
    metrics = "dram__bytes_read.sum,dram__bytes_write.sum"
    command = [program, "--clock-control", "none", "--metrics", metrics, sys.executable, "-m", "benchmarks.one_call"]
    command += ["--op", "group_norm_silu", "--largest"]
    return _run("bytes", command, limit - GRACE_SECONDS, environment, keep=20)


def _measure(what: str, seconds: str) -> list[str]:
    command = [sys.executable, "-m", "benchmarks.run", what, "--device", "cuda", "--seconds", seconds]
    return [*command, "--out", str(RESULTS), "--tables", str(TABLES)]


def part_ops(environment: dict[str, str], limit: float) -> Outcome:
    """Ops against their peers, the most important cases first; torch.compile beside the first case of each."""
    command = [*_measure("ops", "0.1"), "--compiled-cases", "1"]
    return _resumed("ops", command, limit, environment, keep=60, again=("--resume",))


def part_models(environment: dict[str, str], limit: float) -> Outcome:
    """A training step and a sampling step of the models, fused against reference against compile."""
    command = [*_measure("models", "0.3"), "--deadline", f"{limit - GRACE_SECONDS - LAST_GROUP_SECONDS:.0f}"]
    return _run("models", command, limit - GRACE_SECONDS, environment, keep=30)


def part_tune(environment: dict[str, str], limit: float) -> Outcome:
    """The table that `auto` reads, for this architecture."""
    return _resumed("tune", _measure("tune", "0.05"), limit, environment, keep=4, again=("--resume",))


# In the order of a whole run, with shares of its time: what a part leaves goes to those after it, so the parts whose
# tool may be absent come before the longest.
PARTS: dict[str, tuple[Part, float]] = {
    "build": (part_build, 60),
    "peers": (part_peers, 20),
    "aot": (part_aot, 200),
    "sanitizer": (part_sanitizer, 60),
    "bytes": (part_bytes, 50),
    "tests": (part_tests, 200),
    "ops": (part_ops, 120),
    "models": (part_models, 80),
    "tune": (part_tune, 60),
}
# AOT stands in for a GPU; the others mean nothing without one.
WITHOUT_GPU = ("build", "peers", "aot", "tests")
WITH_GPU = tuple(part for part in PARTS if part != "aot")
# A build from sources and cubins of every kernel take a slow machine longer.
LIMIT_WITH_GPU, LIMIT_WITHOUT = 530.0, 1200.0
LEAST_SECONDS = 30.0


def main() -> int:
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(143))  # so that `finally` ends what was started
    wanted = [part for part in os.environ.get("PART", "").split(",") if part]
    unknown = [part for part in wanted if part not in PARTS]
    if unknown:
        print(f"PART={','.join(unknown)}: unknown; choose from {', '.join(PARTS)}")
        return 2
    runs = WITH_GPU if HAS_GPU else WITHOUT_GPU
    chosen = wanted or (WITH_GPU if HAS_GPU else tuple(PARTS))
    end = time.perf_counter() + float(os.environ.get("LIMIT", LIMIT_WITH_GPU if HAS_GPU else LIMIT_WITHOUT))
    environment = install_wheels(dict(os.environ))
    outcomes: list[Outcome] = []
    for place, part in enumerate(chosen):
        limit = share(end - time.perf_counter(), [p for p in chosen[place:] if p in runs or HAS_GPU], part)
        print(f"== {part}, at most {limit:.0f} s", flush=True)
        outcomes.append(_outcome(part, part in runs or HAS_GPU, environment, limit))
        print("\n".join(_summary(outcomes[-1])), flush=True)
        if HAS_GPU:
            _record(outcomes)
    print("\n".join([*recorded()[-30:], *(_summary(outcome)[0] for outcome in outcomes)]), flush=True)
    return 0 if all(o.status == "ok" or o.status.startswith("not run") for o in outcomes) else 1


def share(left: float, parts: list[str], part: str) -> float:
    """Seconds of a part out of what is left for it and those after it."""
    weights = {name: PARTS[name][1] for name in parts}
    return left * weights.get(part, 0.0) / (sum(weights.values()) or 1.0)


def _outcome(part: str, runnable: bool, environment: dict[str, str], limit: float) -> Outcome:
    if not runnable:
        return Outcome(part, "not run: no CUDA device", 0.0, [])
    if part not in ("build", "peers") and limit < LEAST_SECONDS:
        return Outcome(part, f"not run: {limit:.0f} s left for it", 0.0, [])
    try:
        return PARTS[part][0](environment, limit)
    except Exception as error:  # the other parts are run all the same
        return Outcome(part, f"failed: {error!r}", 0.0, [])


def _record(outcomes: list[Outcome]) -> None:
    """All parts so far; those of an earlier run that this one did not run are kept."""
    device = torch.device("cuda")
    path = RESULTS / machine_name(device) / "gpu_check.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    before = json.loads(path.read_text())["gpu_check"] if path.exists() else {}
    parts = before | {o.part: asdict(o) for o in outcomes}
    path.write_text(json.dumps({"environment": facts(device), "gpu_check": parts}, indent=1) + "\n")


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
