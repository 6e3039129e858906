"""`vdiff-fast bench`: measure ops against their peers, another commit or each other; tables, JSON, plots."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table

from vdiff_fast import ops
from vdiff_fast.bench.cases import COMPILE, EAGER, OURS, measure_op
from vdiff_fast.bench.report import by_group, machine_name, ratio, summary_lines, write_json

COLUMNS = (
    "op",
    "case",
    "dtype",
    "direction",
    "backend",
    "ms",
    "x eager",
    "x compile",
    "GB/s",
    "% of copy",
    "err/eager",
)


def bench(
    op: Annotated[str | None, typer.Option(help="Name of one op; all ops where left out.")] = None,
    model: Annotated[
        str | None, typer.Option(help='Whole steps of a model instead: "VideoUNet tiny", or "all".')
    ] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, or auto.")] = "auto",
    dtype: Annotated[list[str] | None, typer.Option(help="float32, bfloat16, float16; repeatable.")] = None,
    seconds: Annotated[float, typer.Option(help="Time for each group of implementations.")] = 1.0,
    json: Annotated[Path | None, typer.Option(help="Write the results to this file, or into this folder.")] = None,
    compiled: Annotated[bool, typer.Option("--compile/--no-compile", help="Measure torch.compile too.")] = True,
    against: Annotated[str | None, typer.Option(help="Compare this tree with another commit instead.")] = None,
    tune: Annotated[bool, typer.Option(help="Measure every backend and write the table that `auto` reads.")] = False,
    profile: Annotated[bool, typer.Option(help="Share of every op in a training step, before and after.")] = False,
    plots: Annotated[Path | None, typer.Option(help="Draw the results of a machine's folder, beside them.")] = None,
) -> None:
    """Time every op against eager, torch.compile and its peers, after checking each against float64."""
    if op is not None and op not in ops.ROOMS:
        raise ValueError(f"no op is called {op!r}; there are {', '.join(ops.ROOMS)}")
    target = torch.device("cuda" if device == "auto" and torch.cuda.is_available() else device.replace("auto", "cpu"))
    dtypes = tuple(getattr(torch, name) for name in dtype) if dtype else None
    console = Console()
    if plots is not None:
        _draw(plots, console)
    elif model is not None:
        _measure_models(model, target, seconds, json, console)
    elif profile:
        _profile(target, seconds, compiled, json, console)
    elif against is not None:
        _compare(op, against, target, seconds, console)
    elif tune:
        _tune(op, target, dtypes, seconds, compiled, console)
    else:
        _measure(op, target, dtypes, seconds, compiled, json, console)


def _profile(target: torch.device, seconds: float, compiled: bool, json: Path | None, console: Console) -> None:
    """Training steps of the models, op by op."""
    from vdiff_fast.bench.models import cases
    from vdiff_fast.bench.profile import profile_model, table, write_profile

    results = []
    for case in cases(target):
        results.append(profile_model(case, target, seconds=seconds, compiled=compiled))
        console.print(table(results[-1]), markup=False)
    if json is not None:
        path = json if json.suffix == ".json" else json / machine_name(target) / "profile.json"
        write_profile(path, results, target)
        console.print(f"wrote {path}")


def _measure(
    op: str | None, target: torch.device, dtypes: tuple[torch.dtype, ...] | None, seconds: float, compiled: bool,
    json: Path | None, console: Console,
) -> None:  # fmt: skip
    rows, copy = measure_op(
        op, target, seconds=seconds, dtypes=dtypes, compiled=compiled, progress=_dim(console)
    )  # fmt: skip
    documents = [row.to_dict() for row in rows]
    console.print(_table(documents, f"{machine_name(target)}, copy {copy:.0f} GB/s, torch {torch.__version__}"))
    for line in summary_lines(documents):
        console.print(line)
    if json is not None:
        path = json if json.suffix == ".json" else json / machine_name(target) / f"{op or 'ops'}.json"
        write_json(path, rows, target, copy)
        console.print(f"wrote {path}")


def _measure_models(model: str, target: torch.device, seconds: float, json: Path | None, console: Console) -> None:
    from vdiff_fast.bench.models import measure_models

    path = json if json is None or json.suffix == ".json" else json / machine_name(target) / "models.json"
    for line in measure_models(target, path, seconds, model=None if model == "all" else model):
        console.print(line)


def _dim(console: Console) -> Any:
    return lambda line: console.print(f"[dim]{line}")


def _table(documents: list[dict[str, Any]], title: str) -> Table:
    table = Table(title=title)
    for column in COLUMNS:
        table.add_column(column)
    for group_key, group in by_group(documents).items():
        ours = group[OURS]
        numbers = [ours["median_ms"], ratio(group, EAGER), ratio(group, COMPILE), ours["gb_per_s"]]
        numbers += [ours["percent_of_copy"], ours["error_in_eager_units"]]
        cells = ["-" if value is None else f"{value:.3g}" for value in numbers]
        table.add_row(*group_key, ours["backend"], *([ours["note"], *cells[1:]] if ours["note"] else cells))
    return table


def _draw(results: Path, console: Console) -> None:
    from vdiff_fast.bench.plots import draw

    written = draw(results, results / "plots")
    for path in written:
        console.print(f"wrote {path}")


def _compare(op: str | None, commit: str, target: torch.device, seconds: float, console: Console) -> None:
    from vdiff_fast.bench.against import compare

    found = compare(op, commit, target, seconds=seconds, progress=_dim(console))
    table = Table(title=f"this tree against {commit}, forward and backward, {machine_name(target)}")
    for column in ("case", "here ms", "there ms", "speedup", "noise", ""):
        table.add_column(column)
    colour = {"slower": "[red]slower", "faster": "[green]faster", "same": ""}
    for c in found:
        table.add_row(c.case, f"{c.here_ms:.3f}", f"{c.there_ms:.3f}", f"{c.speedup:.2f}", f"{c.noise:.0%}",
                      colour[c.verdict])  # fmt: skip
    console.print(table)
    if any(c.verdict == "slower" for c in found):
        raise typer.Exit(1)


def _tune(
    op: str | None, target: torch.device, dtypes: tuple[torch.dtype, ...] | None, seconds: float, compiled: bool,
    console: Console,
) -> None:  # fmt: skip
    from vdiff_fast.bench.tune import tune

    path = tune(op, target, dtypes=dtypes, seconds=seconds, compiled=compiled, progress=_dim(console))
    console.print(f"wrote {path}; `auto` follows it from the next import on")
