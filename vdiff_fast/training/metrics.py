"""metrics.jsonl, loss.png, tensorboard and the progress line."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from vdiff_fast._files import disk_errors_of, whole_file, write_text


class MetricsLog:
    """RUN/metrics.jsonl, one object per row; optionally the same as tensorboard events."""

    def __init__(self, run: Path, *, after: int = 0, tensorboard: bool = False) -> None:
        """Go on after step `after`: later rows, of a run that was cut off, are removed."""
        self.path = run / "metrics.jsonl"
        kept = [row for row in read_metrics(run) if row["step"] <= after]
        write_text(self.path, "".join(json.dumps(row) + "\n" for row in kept))
        self._file = self.path.open("a", buffering=1)
        self._events = _summary_writer(run, after) if tensorboard else None

    def write(self, row: dict[str, Any]) -> None:
        with disk_errors_of(self.path):
            self._file.write(json.dumps(row) + "\n")
        if self._events is not None:
            for name, value in row.items():
                if name != "step":
                    self._events.add_scalar(f"train/{name}", value, row["step"])

    def close(self) -> None:
        self._file.close()
        if self._events is not None:
            self._events.close()


def _summary_writer(run: Path, after: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ImportError("log.tensorboard needs tensorboard: pip install 'vdiff-fast[log]'") from error
    return SummaryWriter(str(run / "tensorboard"), purge_step=after + 1)


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """Rows of metrics.jsonl; a last line cut off by a crash is left out."""
    try:
        lines = (run / "metrics.jsonl").read_text().splitlines()
    except FileNotFoundError:
        return []
    rows = []
    for line in lines:
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows


def smooth(values: Sequence[float], weight: float = 0.97) -> list[float]:
    """Exponential moving average without the bias of its start; NaN and Inf are passed over."""
    average, total, smoothed = 0.0, 0.0, []
    for value in values:
        if math.isfinite(value):
            average = weight * average + (1 - weight) * value
            total = weight * total + (1 - weight)
        smoothed.append(average / total if total else math.nan)
    return smoothed


def plot_loss(rows: Sequence[dict[str, Any]], path: Path, *, title: str = "") -> None:
    """loss.png: the loss of every row and its moving average over steps, on a logarithmic scale.

    Raises:
        ImportError: matplotlib is not installed; the message says how to get it.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("loss.png needs matplotlib: pip install 'vdiff-fast[plots]'") from error
    steps, losses = [row["step"] for row in rows], [row["loss"] for row in rows]
    figure = Figure(figsize=(7.0, 4.0), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.plot(steps, losses, color="0.75", linewidth=0.8, label="loss")
    axes.plot(steps, smooth(losses), color="tab:blue", linewidth=1.8, label="moving average")
    if any(math.isfinite(loss) and loss > 0 for loss in losses):
        axes.set_yscale("log")
    axes.set(xlabel="step", ylabel="loss", title=title)
    axes.grid(True, which="both", alpha=0.3)
    axes.legend()
    with whole_file(path) as temporary:
        figure.savefig(temporary, format="png")


class Progress:
    """One line: step, loss, it/s, frames/s, share of time waited for data, time left."""

    def __init__(self, steps: int, *, start: int, frames_per_step: int, show: bool) -> None:
        self._bar = tqdm(
            total=steps, initial=start, unit="it", dynamic_ncols=True, disable=not show, mininterval=0.5, smoothing=0.1
        )
        self._frames = frames_per_step
        self._loss: float | None = None
        self._since, self._steps, self._waited = time.perf_counter(), 0, 0.0

    def update(self, loss: float, data_wait: float) -> None:
        """One step was made; `data_wait` are the seconds it waited for its batches."""
        if math.isfinite(loss):
            self._loss = loss if self._loss is None else 0.95 * self._loss + 0.05 * loss
        self._steps += 1
        self._waited += data_wait
        self._bar.set_postfix_str(self._figures(), refresh=False)
        self._bar.update()

    def _figures(self) -> str:
        elapsed = max(1e-9, time.perf_counter() - self._since)
        loss = "nan" if self._loss is None else f"{self._loss:.4f}"
        frames = self._frames * self._steps / elapsed
        return f"loss {loss}, {frames:.0f} frames/s, data wait {100 * self._waited / elapsed:.0f} %"

    def write(self, text: str) -> None:
        """A line above the progress line."""
        if not self._bar.disable:
            self._bar.write(text)

    def close(self) -> None:
        self._bar.close()
