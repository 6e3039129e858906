"""Plots are drawn from results, and say where there are none."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from vdiff_fast import ops
from vdiff_fast._spec import BenchCase, Sample, randn
from vdiff_fast.bench import plots
from vdiff_fast.bench.cases import Group, measure_group
from vdiff_fast.bench.report import write_json

CPU = torch.device("cpu")


def _write(folder: Path, **extra: object) -> None:
    spec = next(s for s in ops.specs() if s.name == "geglu")
    sample = Sample("x", (randn((8, 64), CPU, torch.float32),))
    group = Group(spec, BenchCase("small", lambda device, dtype: sample, 1 << 20, 1 << 20), torch.float32, "forward")
    rows = measure_group(group, CPU, seconds=0.01, compiled=False)
    write_json(folder / "geglu.json", rows, CPU, 30.0, **extra)


def test_a_figure_per_op_and_one_of_the_models(tmp_path: Path) -> None:
    models = [
        {"model": "tiny", "step": step, "implementation": name, "median_ms": 1.0, "saved_bytes": 1 << 20}
        for step in ("train", "sample")
        for name in ("vdiff_fast", "reference")
    ]
    _write(tmp_path, models=models)
    written = plots.draw(tmp_path, tmp_path / "plots")
    assert [path.name for path in written] == ["geglu.png", "models.png"]
    assert all(path.read_bytes()[:4] == b"\x89PNG" for path in written)


def test_an_empty_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no results to draw"):
        plots.draw(tmp_path, tmp_path)
