"""The contract of every op with compiled kernels, executed in gpu_emulator.

    python -m tests.emulated cuda                                     every op, dtype and device
    python -m tests.emulated cuda --ops group_norm_silu --groups extra,large --devices h200 --dtypes float32
    python -m tests.emulated triton --quick                           the cases that --select listed

A case passes where its values and gradients are as close to float64 as the op's spec asks, two orders of warps and
blocks give the same bits, and no launch was refused or found at fault. Prints a row for each op, dtype and device, all
failures, and the kernels that were built and never launched; of a run of all ops these are failures too.

Groups of samples: contract (the specs' own), strided and offset (the same values in awkward memory), extra (sizes,
widths and dtypes that take every kernel), large (a grid and a split on an H200; minutes each), bench (layers of real
models).
"""

from __future__ import annotations

import argparse
import os
import pickle
import sys
import time
from pathlib import Path

from tests.emulated import record, report, select, worker
from tests.emulated.cases import DEVICES, DTYPES, Case, enumerate_cases, quick_list, read_cases
from tests.emulated.run import BACKENDS
from tests.emulated.samples import GROUPS

DEFAULT_GROUPS = {"cuda": ["contract", "strided", "offset", "extra"], "triton": ["contract"]}


def _listed(text: str) -> list[str]:
    return [part for part in text.split(",") if part]


def _parse() -> argparse.Namespace:
    parse = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parse.add_argument("backend", choices=list(BACKENDS))
    parse.add_argument("--ops", type=_listed, default=[])
    parse.add_argument("--dtypes", type=_listed, default=list(DTYPES))
    parse.add_argument(
        "--devices", type=_listed, default=[], help="cuda: h200,a100,small,small80,plain; triton: sm_90,sm_80"
    )
    parse.add_argument("--groups", type=_listed, default=[], help=", ".join(GROUPS))
    parse.add_argument("--sample", default="", help="only samples whose name contains this")
    parse.add_argument("--quick", action="store_true", help="the cases that --select listed, races in one order")
    parse.add_argument("--share", default="0/1", help="i/n: the i-th of n parts of the cases")
    parse.add_argument(
        "--select", action="store_true", help="choose few of these that run every kernel, and list them for --quick"
    )
    parse.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parse.add_argument("--record", action="store_true", help=f"keep the table in {record.FOLDER}, for the docs")
    parse.add_argument("--keep", type=Path, help="keep the results, with what they executed, for a later look")
    options = parse.parse_args()
    options.devices = options.devices or list(DEVICES[options.backend])
    options.groups = options.groups or DEFAULT_GROUPS[options.backend]
    return options


def _cases(options: argparse.Namespace) -> list[Case]:
    if options.quick:
        if not quick_list(options.backend).exists():
            raise SystemExit(
                f"no cases are listed for --quick: run python -m tests.emulated {options.backend} --select"
            )
        cases = [c for c in read_cases(quick_list(options.backend)) if c.device in options.devices]
        cases = [c for c in cases if not options.ops or c.op in options.ops]
    else:
        cases = list(enumerate_cases(worker.package(), options))
    part, parts = map(int, options.share.split("/"))
    return cases[len(cases) * part // parts : len(cases) * (part + 1) // parts]


def main() -> int:
    options = _parse()
    worker.load(options.backend)
    started, results = time.monotonic(), []
    cases = _cases(options)
    for result in worker.results(cases, options):
        results.append(result)
        if not result.passed:
            print(f"failed: {result.case}", file=sys.stderr, flush=True)
        if len(results) % 100 == 0:
            print(f"{len(results)} of {len(cases)}", file=sys.stderr, flush=True)
    whole = not (options.ops or options.sample) and options.share == "0/1"
    never = report.never_launched(worker.kernels(), results) if whole else []
    print(report.table(results))
    print(report.failures(results))
    print(f"\n{len(never)} kernels were built and never launched", *never, sep="\n  ")
    wall, instructions = time.monotonic() - started, sum(r.instructions for r in results)
    print(f"\n{len(results)} cases, {instructions / 1e6:.0f} million warp instructions, {wall:.0f} s")
    if options.record:
        part = "the short run" if options.quick else ", ".join(options.groups)
        print(f"wrote {record.write(record.document(options.backend, part, results, worker.kernels()))}")
    if options.keep:
        options.keep.write_bytes(pickle.dumps(results))
    if options.select:
        select.write(quick_list(options.backend), options.backend, results)
    return 0 if results and not never and all(result.passed for result in results) else 1


if __name__ == "__main__":
    sys.exit(main())
