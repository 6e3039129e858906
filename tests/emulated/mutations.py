"""Which leg of proof finds a defect: each of `defects.DEFECTS` is put into a copy of the sources, and every leg runs.

    python -m tests.emulated.mutations                     all, and writes docs/performance/seeded_defects.md
    python -m tests.emulated.mutations --only half_a_warp  those whose name contains this; writes nothing

Legs: the emulator (compiled PTX), Triton's interpreter, the host emulation of CUDA blocks with ThreadSanitizer and the
host tests of the same source, and the compilers with ptxas. Each defect's kernels are compiled for its cases' dtype
alone; about 25 minutes on one core.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from gpu_emulator import cuda
from tests.emulated import library
from tests.emulated.cases import Case
from tests.emulated.defects import DEFECTS, Defect

ROOT = library.ROOT
PAGE = ROOT / "docs" / "performance" / "seeded_defects.md"
LEGS = ("emulator", "interpreter", "host", "compiler")
_COPIED, _LINKED = ("csrc", "vdiff_fast", "tests"), ("gpu_emulator", "benchmarks", "build", "pyproject.toml")
_DISPATCHED = {"float32": "Float", "bfloat16": "BFloat16", "float16": "Half"}


def planted(defect: Defect, tree: Path) -> Path:
    """Copies the sources into `tree`, with the defect.

    Raises:
        ValueError: the defect's text does not stand in its file exactly once.
    """
    for name in _COPIED:
        ignored = shutil.ignore_patterns("__pycache__", "*.so", "_lib", "*.mp4")
        shutil.copytree(ROOT / name, tree / name, ignore=ignored)
    for path in (ROOT / "vdiff_fast").iterdir():
        if path.name == "_lib" or path.suffix == ".so":
            (tree / "vdiff_fast" / path.name).symlink_to(path)
    for name in _LINKED:
        (tree / name).symlink_to(ROOT / name)
    file = tree / defect.file
    text = file.read_text()
    if text.count(defect.old) != 1:
        raise ValueError(f"{defect.name}: its text stands {text.count(defect.old)} times in {defect.file}, not once")
    file.write_text(text.replace(defect.old, defect.new))
    return tree


def _for_one_dtype(tree: Path, dtype: str) -> None:
    """The dispatch over dtypes, of which compiling takes most of the time, knows this one alone."""
    file = tree / "csrc" / "cuda" / "dtype.cuh"
    text = file.read_text()
    for name, scalar in _DISPATCHED.items():
        if name != dtype:
            text, removed = re.subn(
                rf"    case ::vdiff::ScalarType::{scalar}: {{.*?\n    }} *\\\n", "", text, flags=re.S
            )
            assert removed == 1, f"the dispatch in {file.name} has another form"
    file.write_text(text)


def _run(command: Sequence[str | Path], tree: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    changed = os.environ | {"PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1"} | environment
    return subprocess.run([str(c) for c in command], cwd=tree, env=changed, capture_output=True, text=True)


def _compile_cuda(defect: Defect, tree: Path) -> str:
    """The emulated library with the op's kernels compiled from the tree; what nvcc says where it refuses."""
    case = Case.parse(defect.cases[0])
    _for_one_dtype(tree, case.dtype)
    others = [o for o in library.compiled_objects() if f"ops/{case.op}/cuda.cu" not in str(o)]
    entries = json.loads((library.NATIVE / "compile_commands.json").read_text())
    entry = next(e for e in entries if e["file"].endswith(f"csrc/ops/{case.op}/cuda.cu"))
    root = entry["file"].removesuffix(f"/csrc/ops/{case.op}/cuda.cu")
    words = [w for w in shlex.split(entry["command"]) if not w.startswith(("--generate-code", "-Xptxas"))]
    words = [w.replace(f"{root}/csrc", str(tree / "csrc")) for w in words]
    made = tree / "cuda.cu.o"
    words[words.index("-o") + 1] = str(made)
    arch = {80: "80", 90: "90a"}[case.architecture]
    done = _run([*words, f"--generate-code=arch=compute_{arch},code=[compute_{arch},sm_{arch}]"], tree)
    if done.returncode != 0:
        return done.stderr[-2000:]
    (tree / "emulated").mkdir()
    (tree / "emulated" / "build.json").write_text("{}")
    own = [made, *others, tree / "tests" / "emulated" / "cpu_library.cpp", "-fPIC"]
    cuda.link(own, tree / "emulated" / "libvdiff_fast_cpu.so", torch=True)
    return ""


def leg_of_emulator(defect: Defect, tree: Path) -> str:
    words = [sys.executable, "-m", "tests.emulated.leg", "emulator", *defect.cases]
    return _verdict(_run(words, tree, VDIFF_FAST_EMULATED=str(tree / "emulated")))


def _interpreter(defect: Defect, tree: Path) -> str:
    if defect.host:
        return _host(defect, tree, TRITON_INTERPRET="1")
    words = [sys.executable, "-m", "tests.emulated.leg", "interpreter", *defect.cases]
    return _verdict(_run(words, tree, TRITON_INTERPRET="1"))


def _verdict(done: subprocess.CompletedProcess[str]) -> str:
    """The last line of a leg's process; a process that a fault ended has found the defect, too."""
    if done.returncode != 0:
        return "crash" if done.returncode < 0 else f"error: {done.stderr.strip()[-300:]}"
    return done.stdout.strip().splitlines()[-1]


def _host(defect: Defect, tree: Path, **environment: str) -> str:
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *defect.host]
    done = _run(command, tree, **environment)
    if done.returncode < 0:
        return "crash"
    if done.returncode == 0:
        return "no"
    return (
        "race" if "data race" in done.stdout else "values" if done.returncode == 1 else f"error: {done.stdout[-300:]}"
    )


def _triton_compiler(defect: Defect, tree: Path) -> str:
    return _verdict(_run([sys.executable, "-m", "tests.emulated.leg", "compiler", *defect.cases[:1]], tree))


def legs_of(defect: Defect, tree: Path) -> dict[str, str]:
    """Of every leg that the defect can be run with: how it was found, "no", or "error: ...", which is none of both."""
    found: dict[str, str] = {}
    if defect.backend == "cuda":
        refused = _compile_cuda(defect, tree)
        found["compiler"] = "refused" if refused else "no"
        if not refused:
            found["emulator"] = leg_of_emulator(defect, tree)
        if defect.host:
            found["host"] = _host(defect, tree)
    else:
        found["emulator"], found["interpreter"] = leg_of_emulator(defect, tree), _interpreter(defect, tree)
        found["compiler"] = _triton_compiler(defect, tree)
    return found


def caught(found: dict[str, str]) -> bool:
    return any(how != "no" and not how.startswith("error") for how in found.values())


def row(defect: Defect, found: dict[str, str]) -> str:
    cells = [found.get(leg, "") for leg in LEGS]
    return f"| `{defect.name}` | {defect.kind} | `{defect.file}` | " + " | ".join(cells) + " |"


def page(results: dict[str, dict[str, str]]) -> str:
    """The table, with what every leg that can run a defect said."""
    commit = subprocess.run(
        ["git", "log", "-1", "--format=%h"], cwd=ROOT, capture_output=True, text=True
    ).stdout.strip()
    made = f"on {datetime.date.today()} at commit {commit}"
    by_name = {defect.name: defect for defect in DEFECTS}
    count = sum(caught(found) for found in results.values())
    lines = [
        "# Seeded defects",
        "",
        f"Generated by `python -m tests.emulated.mutations` {made}; do not edit.",
        "",
        f"{len(results)} defects, each put alone into our own kernels: {count} are found. A cell says how a leg found",
        "it (a race, a fault of memory, wrong values, a result that depends on the order), `no` where it ran and found",
        "nothing, and is empty where the leg cannot run the file.",
        "",
        "| defect | kind | file | " + " | ".join(LEGS) + " |",
        "| --- | --- | --- |" + " --- |" * len(LEGS),
        *(row(by_name[name], found) for name, found in results.items()),
    ]
    missed = [by_name[name] for name, found in results.items() if not caught(found)]
    lines += ["", *(f"- `{defect.name}` is not found: {defect.reason}" for defect in missed)]
    return "\n".join(lines).rstrip() + "\n"


def main() -> int:
    parse = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parse.add_argument("--only", default="", help="the defects whose name contains this")
    parse.add_argument("--json", type=Path, help="keep what was found here, and go on from it")
    options = parse.parse_args()
    results = json.loads(options.json.read_text()) if options.json and options.json.exists() else {}
    for defect in DEFECTS:
        if options.only in defect.name and defect.name not in results:
            with tempfile.TemporaryDirectory() as folder:
                results[defect.name] = legs_of(defect, planted(defect, Path(folder) / "tree"))
            print(row(defect, results[defect.name]), flush=True)
            if options.json:
                options.json.write_text(json.dumps(results, indent=1))
    if not options.only:
        PAGE.write_text(page(results))
    missed = [name for name, found in results.items() if not caught(found)]
    print(f"{len(results) - len(missed)} of {len(results)} found; not found: {', '.join(missed) or 'none'}")
    return int(any(not defect.reason for defect in DEFECTS if defect.name in missed))


if __name__ == "__main__":
    sys.exit(main())
