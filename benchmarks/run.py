"""Measure and write JSON without the command line's extra packages: `python -m benchmarks.run ops --device cpu`."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch

from vdiff_fast import ops
from vdiff_fast.bench.cases import Row, groups, measure_group
from vdiff_fast.bench.measure import copy_bandwidth
from vdiff_fast.bench.report import machine_name, summary_lines, write_json


def run_ops(arguments: argparse.Namespace, device: torch.device) -> None:
    """Every op into a file of its own, so that an interrupted run keeps what is done."""
    folder = Path(arguments.out) / machine_name(device)
    deadline = time.monotonic() + arguments.limit
    copy = copy_bandwidth(device)
    dtypes = tuple(getattr(torch, name) for name in arguments.dtype) if arguments.dtype else None
    lines: list[str] = []
    for spec in ops.specs():
        if arguments.op and spec.name not in arguments.op:
            continue
        rows: list[Row] = []
        for group in groups(device, dtypes, spec.name):
            if time.monotonic() > deadline:
                print(f"time limit reached before {group.id}", flush=True)
                break
            rows += measure_group(group, device, seconds=arguments.seconds, copy_gb_per_s=copy)
        if rows:
            write_json(folder / f"{spec.name}.json", rows, device, copy)
            lines += summary_lines([row.to_dict() for row in rows])
    print("\n".join(lines))


def run_models(arguments: argparse.Namespace, device: torch.device) -> None:
    """Training and sampling steps of the models."""
    from vdiff_fast.bench.models import measure_models

    folder = Path(arguments.out) / machine_name(device)
    for line in measure_models(device, folder / "models.json", seconds=arguments.seconds):
        print(line, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("ops", "models"))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", default="benchmarks/results")
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--limit", type=float, default=3600.0, help="stop starting new groups after this many seconds")
    parser.add_argument("--dtype", nargs="*")
    parser.add_argument("--op", nargs="*")
    arguments = parser.parse_args()
    {"ops": run_ops, "models": run_models}[arguments.what](arguments, torch.device(arguments.device))


if __name__ == "__main__":
    main()
