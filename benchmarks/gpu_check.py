"""Everything a GPU is needed for, in one command that ends within 10 minutes: `make gpu-check`, or
`PART=tests,ops python -m benchmarks.gpu_check`.

It uses the Python that is active and no network. Wheels found in `.whl/` are used if they are there. Each part has a
time limit of its own and a result of its own, so a run can be resumed by part. Results are JSON under
benchmarks/results/<machine>/; the last 60 lines are the summary.
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

ROOT = Path(__file__).resolve().parents[1]
RESULTS = Path(os.environ.get("VDIFF_FAST_RESULTS", ROOT / "benchmarks" / "results"))


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
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / f"gpu_check_{part}.log").write_text(output)
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
    return _run("build", [sys.executable, "-m", "vdiff_fast._build"], 240, environment)


def part_tests(environment: dict[str, str]) -> Outcome:
    """Every test that needs a GPU."""
    command = [sys.executable, "-m", "pytest", "-q", "-x", "--maxfail=25", "-m", "gpu", "-p", "no:cacheprovider"]
    return _run("tests", command, 240, environment, keep=25)


def part_sanitizer(environment: dict[str, str]) -> Outcome:
    """compute-sanitizer on the smallest contract sample of the CUDA C++ kernels."""
    program = shutil.which("compute-sanitizer")
    if program is None:
        return Outcome("sanitizer", "compute-sanitizer is not on PATH", 0.0, [])
    code = (
        "import torch, vdiff_fast as vf\n"
        "from vdiff_fast import ops\n"
        "for s in ops.specs():\n"
        "    if 'cuda' not in s.predicates: continue\n"
        "    with vf.use_backend('cuda', ops=[s.name]):\n"
        "        c = next(iter(s.samples(torch.device('cuda'), torch.float32)))\n"
        "        o = s.function(*c.args, **c.kwargs); o = o[0] if isinstance(o, tuple) else o\n"
        "        o.requires_grad and o.sum().backward()\n"
        "torch.cuda.synchronize(); print('clean')\n"
    )
    return _run("sanitizer", [program, "--error-exitcode", "9", sys.executable, "-c", code], 120, environment)


def part_ops(environment: dict[str, str]) -> Outcome:
    """Every op against its peers."""
    command = [
        sys.executable,
        "-m",
        "benchmarks.run",
        "ops",
        "--device",
        "cuda",
        "--out",
        str(RESULTS),
        "--limit",
        "200",
    ]
    return _run("ops", command, 280, environment, keep=30)


def part_models(environment: dict[str, str]) -> Outcome:
    """A training step and a sampling step of the models, fused against reference against compile."""
    command = [sys.executable, "-m", "benchmarks.run", "models", "--device", "cuda", "--out", str(RESULTS)]
    return _run("models", command, 180, environment, keep=12)


PARTS: dict[str, Callable[[dict[str, str]], Outcome]] = {
    "build": part_build,
    "tests": part_tests,
    "sanitizer": part_sanitizer,
    "ops": part_ops,
    "models": part_models,
}


def main() -> int:
    wanted = os.environ.get("PART", ",".join(PARTS)).split(",")
    unknown = [part for part in wanted if part not in PARTS]
    if unknown:
        print(f"PART={','.join(unknown)}: unknown; choose from {', '.join(PARTS)}")
        return 2
    environment = install_wheels(dict(os.environ))
    outcomes = []
    for part in wanted:
        print(f"== {part}", flush=True)
        outcomes.append(PARTS[part](environment))
    (RESULTS / "gpu_check.json").write_text(json.dumps([o.__dict__ for o in outcomes], indent=1) + "\n")
    lines = [line for outcome in outcomes for line in _summary(outcome)]
    print("\n".join(lines[-60:]))
    return 0 if all(o.status == "ok" or o.seconds == 0 for o in outcomes) else 1


def _summary(outcome: Outcome) -> list[str]:
    return [f"== {outcome.part}: {outcome.status} ({outcome.seconds:.0f} s)", *(f"   {line}" for line in outcome.tail)]


if __name__ == "__main__":
    sys.exit(main())
