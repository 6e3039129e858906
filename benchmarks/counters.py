"""What the kernels move and issue at the benchmark shapes, counted in gpu_emulator: `python -m benchmarks.counters`.

Writes a file for every op into benchmarks/results/emulated-h200/, from which `make docs` makes
docs/performance/emulated_counters.md. Nothing is timed. Every forward and every backward begins with an empty L2 of
50 MB, which its launches share; what is dirty in it at the end has been written.
"""

from __future__ import annotations

import argparse
import functools
import json
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from gpu_emulator import cuda, traffic, triton
from tests.emulated import library

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "benchmarks" / "results" / "emulated-h200"
DTYPE = torch.bfloat16
BACKENDS = ("cuda", "triton")
# Of a case's largest tensor: a larger one takes minutes.
MOST_ELEMENTS = 10_000_000
UNCHECKED = {"memcheck": False, "racecheck": 0}
# Counts of requests and what they cost: the name in the results, and the two counters whose ratio it is.
RATIOS = {
    "load_sectors_per_request": ("global_load_sectors", "global_load_requests"),
    "store_sectors_per_request": ("global_store_sectors", "global_store_requests"),
    "wavefronts_per_request": ("shared_wavefronts", "shared_requests"),
}


def size_in_bytes(tensors: Iterable[Tensor]) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)


def _outputs(found: Any) -> list[Tensor]:
    return [t for t in (found if isinstance(found, tuple) else (found,)) if isinstance(t, Tensor)]


@contextmanager
def _counted(backend: str, **options: Any) -> Iterator[list[tuple[str, dict[str, int]]]]:
    """Name and counters of every launch within, on an H200 whose L2 is empty at the start."""
    found: list[tuple[str, dict[str, int]]] = []
    with traffic.counted():
        if backend == "cuda":
            with cuda.active("h200", **UNCHECKED | options) as log:
                yield found
            for launch in log.launches:
                if launch.kind:
                    raise RuntimeError(f"{launch.name}: {launch.refusal or launch.error}")
            found += [(launch.name, launch.counters) for launch in log.launches]
        else:
            with triton.active(90, **UNCHECKED | options) as launches:
                yield found
            found += [(launch.name, launch.report.counters) for launch in launches]


def _small(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Weights and vectors, which a spec's minimum leaves out."""
    most = max((t.numel() for t in tensors), default=0)
    return [t for t in tensors if t.numel() * 8 <= most]


def passes(spec: Any, case: Any, backend: str, dtype: torch.dtype) -> Iterator[dict[str, Any]]:
    """A row for the forward of a case, and one for its backward if it launches anything.

    The least that a forward moves is its inputs and outputs; a backward, what the spec says and the vectors with their
    gradients, or, where it says nothing, the inputs, the outputs' gradients and the gradients.
    """
    sample = case.sample(torch.device("cpu"), dtype)
    inputs = sample.tensors()
    with _counted(backend) as launches:
        outputs = _outputs(spec.function(*sample.args, **sample.kwargs))
    elements = max(t.numel() for t in [*inputs, *outputs])
    yield _row("forward", elements, size_in_bytes([*inputs, *outputs]), launches)
    wanted, differentiable = sample.differentiable(), [o for o in outputs if o.requires_grad]
    if not wanted or not differentiable:
        return
    cotangents = [torch.ones_like(o).contiguous() for o in differentiable]
    with _counted(backend) as launches:
        found = torch.autograd.grad(differentiable, wanted, cotangents, allow_unused=True)
    gradients = [g for g in found if g is not None]
    if case.bytes_backward is not None:
        vectors = [*_small(inputs), *_small(gradients)]
        least = case.bytes_backward * dtype.itemsize // 4 + size_in_bytes(vectors)
    else:
        least = size_in_bytes([*inputs, *cotangents, *gradients])
    if launches:
        yield _row("backward", elements, least, launches)


def _total(launches: Sequence[dict[str, int]], counter: str) -> int:
    return sum(counters[counter] for counters in launches)


def _row(direction: str, elements: int, least: int, launches: Sequence[tuple[str, dict[str, int]]]) -> dict[str, Any]:
    kernels: dict[str, list[dict[str, int]]] = defaultdict(list)
    for name, counters in launches:
        kernels[name].append(counters)
    total = functools.partial(_total, [counters for _, counters in launches])
    return {
        "direction": direction,
        "elements": elements,
        "least_bytes": least,
        "read_bytes": total("dram_load_bytes"),
        "written_bytes": total("dram_store_bytes"),
        "instructions_per_element": total("thread_instructions") / elements,
        "kernels": [_kernel(name, found, elements) for name, found in kernels.items()],
    }


def _kernel(name: str, launches: Sequence[dict[str, int]], elements: int) -> dict[str, Any]:
    total = functools.partial(_total, launches)
    ratios = {key: total(above) / total(below) if total(below) else None for key, (above, below) in RATIOS.items()}
    return {
        "kernel": name,
        "launches": len(launches),
        "instructions_per_element": total("thread_instructions") / elements,
        **ratios,
    }


def rows(vf: ModuleType, backend: str, ops: Sequence[str], case_name: str = "") -> Iterator[dict[str, Any]]:
    """Of every case that is small enough; of a larger one a row that says so."""
    for spec in vf.ops.specs():
        if backend not in spec.predicates or (ops and spec.name not in ops):
            continue
        for case in spec.bench():
            if case_name not in case.name:
                continue
            head = {"op": spec.name, "case": case.name, "dtype": str(DTYPE).removeprefix("torch."), "backend": backend}
            # The bytes are of float32, and of two tensors at least.
            if case.bytes_forward is not None and case.bytes_forward / 8 > MOST_ELEMENTS:
                yield head | {"note": "too large to be emulated whole"}
                continue
            with vf.use_backend(backend, ops=[spec.name]):
                for row in passes(spec, case, backend, DTYPE):
                    yield head | row


def _measured(backend: str, arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """A backend's kernels take the place of the package's own, so each backend has a process of its own."""
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.counters", "--backend", backend]
    command += ["--case", arguments.case, *(("--ops", *arguments.ops) if arguments.ops else ())]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            yield json.loads(line)
    if process.returncode != 0:
        raise SystemExit(process.returncode)


def summary(row: dict[str, Any]) -> str:
    name = f"{row['op']} {row['case']} {row['backend']}"
    if "note" in row:
        return f"{name}: {row['note']}"
    moved = (row["read_bytes"] + row["written_bytes"]) / row["least_bytes"]
    return (
        f"{name} {row['direction']}: {moved:.2f} of the least bytes, {row['instructions_per_element']:.1f} instructions"
    )


def write(found: Sequence[dict[str, Any]], folder: Path = FOLDER) -> None:
    """A file for each op; the others stay."""
    environment = {"torch": version("torch"), "triton": version("triton"), "commit": _commit()}
    folder.mkdir(parents=True, exist_ok=True)
    for op in dict.fromkeys(row["op"] for row in found):
        document = {"environment": environment, "rows": [row for row in found if row["op"] == op]}
        (folder / f"{op}.json").write_text(json.dumps(document, indent=1) + "\n")


def _commit() -> str:
    command = ["git", "rev-parse", "--short", "HEAD"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.counters", description=__doc__)
    parser.add_argument("--ops", nargs="*", default=[])
    parser.add_argument("--case", default="", help="a part of the case's name; nothing is written then")
    parser.add_argument("--backend", default="", choices=("", *BACKENDS), help="this one, rows on standard output")
    arguments = parser.parse_args()
    if arguments.backend:
        torch.set_num_threads(1)
        load: Callable[[], ModuleType] = library.load_cuda if arguments.backend == "cuda" else library.load_triton
        for row in rows(load(), arguments.backend, arguments.ops, arguments.case):
            print(json.dumps(row), flush=True)
        return 0
    found: list[dict[str, Any]] = []
    try:
        for backend in BACKENDS:
            for row in _measured(backend, arguments):
                print(summary(row), flush=True)
                found.append(row)
    finally:
        if not arguments.case:
            write(found)
    return 0


if __name__ == "__main__":
    sys.exit(main())
