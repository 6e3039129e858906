"""`python -m benchmarks.gpu_model`: predict every target case with both backends, write the results and the page."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.gpu_model import capture, cost
from benchmarks.gpu_model.machine import MACHINES, Machine
from benchmarks.gpu_model.report import RESULTS, table, write_page


def predicted(target: Any, backend: str, machine: Machine, vf: Any) -> dict[str, Any]:
    """One row: the case, what each of its kernels issues and moves, and the prediction."""
    kernels = capture.run(vf, backend, target.op, machine.architecture, target.call)
    seconds, predictions = cost.predict_call(kernels, machine)
    row: dict[str, Any] = {
        "op": target.op,
        "case": target.case,
        "direction": target.direction,
        "backend": backend,
        "predicted_us": 1e6 * seconds,
        "instructions_per_element": 32 * sum(k.counts.issued for k in kernels) / target.elements,
        "kernels": [_kernel(kernel, prediction) for kernel, prediction in zip(kernels, predictions)],
    }
    moved = sum(kernel.read_bytes + kernel.written_bytes for kernel in kernels)
    least = target.least_bytes if target.least_bytes is not None else moved
    row["limit_us"] = 1e6 * least / machine.copy_bytes_per_second
    row["bytes_moved_of_least"] = moved / least
    return row


def _kernel(kernel: capture.Launched, prediction: cost.Prediction) -> dict[str, Any]:
    counts = kernel.counts
    return {
        "kernel": kernel.kernel,
        "launches": kernel.launches,
        "blocks": kernel.blocks,
        "threads": kernel.threads,
        "registers": kernel.usage.registers,
        "shared_bytes": kernel.shared_bytes,
        "blocks_per_multiprocessor": prediction.blocks_per_multiprocessor,
        "bytes_in_flight": round(prediction.bytes_in_flight),
        "read_bytes": round(kernel.read_bytes),
        "written_bytes": round(kernel.written_bytes),
        "warp_instructions": round(counts.issued),
        "requests": kernel.requests,
        "by_pipe": {name: round(value) for name, value in sorted(counts.by_pipe.items())},
        "accesses_by_width": {size: round(value) for size, value in sorted(counts.accesses.items())},
        "binding": prediction.binding,
        "times_us": {name: round(1e6 * value, 2) for name, value in prediction.times.items()},
    }


def _measure(arguments: argparse.Namespace, machine: Machine) -> None:
    """Rows of one backend, one JSON document a line."""
    from benchmarks.gpu_model.cases import targets

    vf = capture.load(arguments.backend)
    for target in targets(vf, arguments.backend, arguments.case):
        if arguments.direction in ("", target.direction):
            print(json.dumps(predicted(target, arguments.backend, machine, vf)), flush=True)


def _rows(backend: str, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """A backend's kernels take the place of the package's own, so each backend has a process of its own."""
    command = [sys.executable, "-m", "benchmarks.gpu_model", "--backend", backend, "--case", arguments.case]
    command += ["--direction", arguments.direction, "--machine", arguments.machine]
    rows = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            rows.append(json.loads(line))
            print(table(rows[-1:], header=len(rows) == 1), end="", flush=True)
    if process.returncode != 0:
        raise SystemExit(process.returncode)
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_model", description=__doc__)
    parser.add_argument("--machine", default="h200", choices=sorted(MACHINES))
    parser.add_argument(
        "--backend", default="", choices=("", "cuda", "triton"), help="this one, rows on standard output"
    )
    parser.add_argument("--case", default="", help="a part of op/case; nothing is written then")
    parser.add_argument("--direction", default="", choices=("", "forward", "backward"))
    arguments = parser.parse_args()
    machine = MACHINES[arguments.machine]
    if arguments.backend:
        _measure(arguments, machine)
        return 0
    rows = _rows("triton", arguments) + _rows("cuda", arguments)
    if not arguments.case and not arguments.direction:
        environment = {"triton": version("triton"), "torch": version("torch")}
        document = {"machine": asdict(machine), "environment": environment, "rows": rows}
        path = RESULTS / f"{machine.name}.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(document, indent=1) + "\n")
        write_page()
        print(f"wrote {path.relative_to(Path.cwd())}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
