"""`vdiff-fast bench`: measure ops against their peers, print a table, write JSON."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.table import Table

from vdiff_fast.bench.cases import COMPILE, EAGER, OURS, measure_op
from vdiff_fast.bench.report import by_group, machine_name, ratio, summary_lines, write_json


def bench(
    op: Annotated[str | None, typer.Option(help="Name of one op; all ops where left out.")] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, or auto.")] = "auto",
    dtype: Annotated[list[str] | None, typer.Option(help="float32, bfloat16, float16; repeatable.")] = None,
    seconds: Annotated[float, typer.Option(help="Time for each group of implementations.")] = 1.0,
    json: Annotated[Path | None, typer.Option(help="Write the results to this file, or into this folder.")] = None,
    compiled: Annotated[bool, typer.Option("--compile/--no-compile", help="Measure torch.compile too.")] = True,
) -> None:
    """Time every op against eager, torch.compile and its peers, after checking each against float64."""
    target = torch.device("cuda" if device == "auto" and torch.cuda.is_available() else device.replace("auto", "cpu"))
    console = Console()
    dtypes = tuple(getattr(torch, name) for name in dtype) if dtype else None
    rows, copy = measure_op(
        op,
        target,
        seconds=seconds,
        dtypes=dtypes,
        compiled=compiled,
        progress=lambda line: console.print(f"[dim]{line}"),
    )
    documents = [row.to_dict() for row in rows]
    table = Table(title=f"{machine_name(target)}, copy {copy:.0f} GB/s, torch {torch.__version__}")
    for column in (
        "op",
        "case",
        "dtype",
        "direction",
        "backend",
        "ms",
        "x eager",
        "x compile",
        "% of copy",
        "err/eager",
    ):
        table.add_column(column)
    for (name, case, kind, direction), group in by_group(documents).items():
        ours = group[OURS]
        numbers = [ours["median_ms"], ratio(group, EAGER), ratio(group, COMPILE), ours["percent_of_copy"]]
        numbers.append(ours["error_in_eager_units"])
        cells = ["-" if value is None else f"{value:.3g}" for value in numbers]
        table.add_row(
            name, case, kind, direction, ours["backend"], *([ours["note"], *cells[1:]] if ours["note"] else cells)
        )
    console.print(table)
    for line in summary_lines(documents):
        console.print(line)
    if json is not None:
        path = json if json.suffix == ".json" else json / machine_name(target) / f"{op or 'ops'}.json"
        write_json(path, rows, target, copy)
        console.print(f"wrote {path}")
