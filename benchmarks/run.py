"""Measure and write JSON without the command line's extra packages: `python -m benchmarks.run ops --device cpu`.

Where time is short the most important is measured first: the first case of every op, then the second of every op.
"""

from __future__ import annotations

import argparse
import faulthandler
import json
import sys
import time
from collections import defaultdict
from pathlib import Path

import torch

from vdiff_fast import _measured
from vdiff_fast.bench.cases import OURS, Group, Row, by_importance, first_row, groups, measure_group
from vdiff_fast.bench.measure import copy_bandwidth, device_is_lost
from vdiff_fast.bench.report import machine_name, summary_lines, write_json

# A kernel that waits for ever ends the process after this time, and `--resume` goes on behind it.
HANG_SECONDS = 90


def _group_key(group: Group) -> tuple[str, str, str]:
    row = first_row(group)
    return row.case, row.dtype, row.direction


def _recorded(folder: Path) -> dict[str, list[Row]]:
    """The rows that lie in a folder, by op."""
    documents = [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
    found = [Row(**row) for document in documents for row in document.get("rows", ())]
    by_op: dict[str, list[Row]] = defaultdict(list)
    for row in found:
        by_op[row.op].append(row)
    return by_op


def _dtypes(arguments: argparse.Namespace, device: torch.device) -> tuple[torch.dtype, ...] | None:
    if arguments.dtype:
        return tuple(getattr(torch, name) for name in arguments.dtype)
    return (torch.bfloat16,) if device.type == "cuda" else None


def run_ops(arguments: argparse.Namespace, device: torch.device) -> None:
    """Every op into a file of its own, written after every group, so that an interrupted run keeps what is done."""
    folder = Path(arguments.out) / machine_name(device)
    deadline = time.monotonic() + arguments.deadline
    rows = _recorded(folder) if arguments.resume else defaultdict(list)
    done = {(op, row.case, row.dtype, row.direction) for op, found in rows.items() for row in found}
    chosen = by_importance(groups(device, _dtypes(arguments, device)))
    left = [
        (number, group)
        for number, group in chosen
        if (not arguments.op or group.spec.name in arguments.op) and (group.spec.name, *_group_key(group)) not in done
    ]
    copy = copy_bandwidth(device)
    measured = []
    try:
        for place, (number, group) in enumerate(left):
            if time.monotonic() > deadline:
                print(f"time limit reached before {group.id} and {len(left) - place - 1} more", flush=True)
                break
            op, before = group.spec.name, rows[group.spec.name]
            path = folder / f"{op}.json"
            if device.type == "cuda":
                # Stands there while the group is measured: a fault that ends the process is not met again on resuming.
                write_json(path, [*before, first_row(group, OURS, "cannot run: it ended the process")], device, copy)
                faulthandler.dump_traceback_later(HANG_SECONDS, exit=True)
            rows[op] = before + measure_group(
                group,
                device,
                seconds=arguments.seconds,
                copy_gb_per_s=copy,
                compiled=number < arguments.compiled_cases,
                autotune=arguments.max_autotune,
            )
            faulthandler.cancel_dump_traceback_later()
            if rows[op]:
                write_json(path, rows[op], device, copy)
            measured.append(op)
            if device_is_lost(device):
                sys.exit(f"the CUDA context is lost in {group.id}; --resume goes on behind it")
    finally:
        for op in dict.fromkeys(measured):
            print("\n".join(summary_lines([row.to_dict() for row in rows[op]])), flush=True)
        for row in (row for op in dict.fromkeys(measured) for row in rows[op] if row.note):
            if row.implementation == OURS:
                print(f"{row.op}-{row.case}-{row.dtype}-{row.direction}: {row.note}", flush=True)


def run_models(arguments: argparse.Namespace, device: torch.device) -> None:
    """Training and sampling steps of the models."""
    from vdiff_fast.bench.models import measure_models

    path = Path(arguments.out) / machine_name(device) / "models.json"
    for line in measure_models(device, path, seconds=arguments.seconds, limit=arguments.deadline):
        print(line, flush=True)


def run_tune(arguments: argparse.Namespace, device: torch.device) -> None:
    """The table that `auto` reads, without torch.compile."""
    from vdiff_fast.bench.tune import tune

    def progress(line: str) -> None:
        print(line, flush=True)
        if device.type == "cuda":
            faulthandler.dump_traceback_later(HANG_SECONDS, exit=True)

    path = tune(
        None,
        device,
        dtypes=_dtypes(arguments, device),
        seconds=arguments.seconds,
        compiled=False,
        progress=progress,
        folder=Path(arguments.tables),
        limit=arguments.deadline,
        resume=arguments.resume,
    )
    faulthandler.cancel_dump_traceback_later()
    print(f"wrote {path}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("ops", "models", "tune"))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", default="benchmarks/results")
    parser.add_argument("--tables", default=str(_measured.FOLDER), help="tune: folder of the tables")
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--deadline", type=float, default=3600.0, help="begin nothing new after this many seconds")
    parser.add_argument("--dtype", nargs="*", help="on a GPU bfloat16 where left out")
    parser.add_argument("--op", nargs="*")
    parser.add_argument("--resume", action="store_true", help="keep the results that lie there and measure the others")
    parser.add_argument(
        "--compiled-cases", type=int, default=1 << 30, help="ops: torch.compile beside the first N cases of an op only"
    )
    parser.add_argument("--max-autotune", action="store_true", help="ops: torch.compile's max-autotune too, on a GPU")
    arguments = parser.parse_args()
    run = {"ops": run_ops, "models": run_models, "tune": run_tune}[arguments.what]
    run(arguments, torch.device(arguments.device))


if __name__ == "__main__":
    main()
