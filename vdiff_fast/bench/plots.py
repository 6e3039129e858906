"""Plots of committed results, PNG: roofline and speed against size per op, memory and steps of the models."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

from vdiff_fast.bench.cases import COMPILE, EAGER, OURS
from vdiff_fast.bench.report import by_group, ratio


def draw(results: Path, out: Path) -> list[Path]:
    """Draw every JSON of one machine's results; gives the files written.

    Raises:
        ValueError: the folder holds no results.
    """
    documents = {path.stem: json.loads(path.read_text()) for path in sorted(results.glob("*.json"))}
    written: list[Path] = []
    for document in documents.values():
        by_op: dict[str, list[dict[str, Any]]] = defaultdict(list)
        for row in document.get("rows", ()):
            by_op[row["op"]].append(row)
        for op, rows in by_op.items():
            written.append(_op_figure(op, rows, document["environment"], out / f"{op}.png"))
        if document.get("models"):
            written.append(_model_figure(document["models"], document["environment"], out / "models.png"))
    if not written:
        raise ValueError(f"{results}: no results to draw; `vdiff-fast bench --json {results}` writes them")
    return written


def _figure(columns: int, title: str) -> tuple[Any, Any]:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, columns, figsize=(6 * columns, 4.2), layout="constrained")
    figure.suptitle(title)
    return figure, axes


def _title(name: str, environment: dict[str, Any]) -> str:
    return f"{name} on {environment['machine']}, torch {environment['torch']}, commit {environment['commit']}"


def _save(figure: Any, path: Path) -> Path:
    from matplotlib import pyplot

    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
    return path


def _op_figure(op: str, rows: list[dict[str, Any]], environment: dict[str, Any], path: Path) -> Path:
    """Left the roofline of a memory-bound op, GB/s of its minimum bytes under the copy; right the ratios to peers."""
    figure, (roof, speed) = _figure(2, _title(op, environment))
    lines: dict[str, list[tuple[float, float]]] = defaultdict(list)
    ratios: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for (_, _, dtype, direction), group in by_group(rows).items():
        ours = group.get(OURS, {})
        if not ours.get("median_ms"):
            continue
        moved = ours["gb_per_s"] * ours["median_ms"] * 1e6 if ours.get("gb_per_s") else None
        for name, row in group.items():
            if moved and row.get("median_ms"):
                lines[f"{name}, {dtype}, {direction}"].append((moved / 2**20, moved / row["median_ms"] / 1e6))
        for peer in (EAGER, COMPILE):
            if (times := ratio(group, peer)) is not None:
                ratios[f"x {peer}, {dtype}, {direction}"].append(((moved or 2**20) / 2**20, times))
    _points(roof, lines, "minimum MiB moved", "GB/s of the minimum bytes")
    roof.axhline(environment["copy_gb_per_s"], color="black", linestyle="--", linewidth=1)
    roof.annotate("copy", (0.01, environment["copy_gb_per_s"]), xycoords=("axes fraction", "data"), va="bottom")
    _points(speed, ratios, "minimum MiB moved", "times as fast as the peer")
    speed.axhline(1.0, color="black", linestyle="--", linewidth=1)
    return _save(figure, path)


def _points(axis: Any, lines: dict[str, list[tuple[float, float]]], x: str, y: str) -> None:
    for name, points in sorted(lines.items()):
        ordered = sorted(points)
        axis.plot(*zip(*ordered), marker="o", linewidth=1, markersize=4, label=name,
                  linestyle="-" if name.startswith(OURS) or name.startswith("x ") else ":")  # fmt: skip
    axis.set(xscale="log", yscale="log", xlabel=x, ylabel=y)
    axis.grid(alpha=0.3, which="both")
    if lines:
        axis.legend(fontsize=7)


def _model_figure(rows: list[dict[str, Any]], environment: dict[str, Any], path: Path) -> Path:
    """Left milliseconds of a training and a sampling step, right the bytes kept for the backward."""
    figure, (steps, memory) = _figure(2, _title("models", environment))
    names = list(dict.fromkeys(row["implementation"] for row in rows))
    kinds = list(dict.fromkeys((row["model"], row["step"]) for row in rows))
    found = {(row["model"], row["step"], row["implementation"]): row for row in rows}
    _bars(steps, [f"{model}\n{step}" for model, step in kinds], names,
          lambda i, name: found.get((*kinds[i], name), {}).get("median_ms"), "ms")  # fmt: skip
    models = list(dict.fromkeys(model for model, _ in kinds))
    _bars(memory, models, names,
          lambda i, name: (found.get((models[i], "train", name), {}).get("saved_bytes") or 0) / 2**20 or None,
          "MiB kept for the backward")  # fmt: skip
    return _save(figure, path)


def _bars(axis: Any, groups: list[str], names: list[str], value: Any, label: str) -> None:
    width = 0.8 / max(1, len(names))
    for j, name in enumerate(names):
        heights = [value(i, name) for i in range(len(groups))]
        kept = [(i + (j - (len(names) - 1) / 2) * width, h) for i, h in enumerate(heights) if h is not None]
        if kept:
            axis.bar([x for x, _ in kept], [h for _, h in kept], width, label=name)
    axis.set_xticks(range(len(groups)), groups, fontsize=8)
    axis.set_ylabel(label)
    axis.legend(fontsize=7)
