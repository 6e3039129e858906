"""The harness itself: a wrong kernel reports no time."""

from __future__ import annotations

from dataclasses import replace

import torch

from vdiff_fast import ops
from vdiff_fast._spec import BenchCase, Sample, randn
from vdiff_fast.bench.cases import EAGER, OURS, Group, measure_group
from vdiff_fast.bench.report import by_group, geometric_mean, ratio


def _group(flip: bool) -> Group:
    spec = next(s for s in ops.specs() if s.name == "geglu")
    if flip:
        right = spec.function
        spec = replace(spec, function=lambda x: -right(x))
    case = BenchCase("small", lambda device, dtype: Sample("x", (randn((8, 64), device, dtype),)), 1, 1)
    return Group(spec, case, torch.float32, "forward+backward")


def test_a_flipped_sign_reports_no_time() -> None:
    rows = measure_group(_group(flip=True), torch.device("cpu"), seconds=0.01, compiled=False)
    side_by_side = next(iter(by_group([r.to_dict() for r in rows]).values()))
    assert side_by_side[OURS]["median_ms"] is None
    assert side_by_side[OURS]["note"].startswith("wrong: error")
    assert side_by_side[EAGER]["median_ms"] > 0
    assert ratio(side_by_side, EAGER) is None


def test_a_right_kernel_reports_one() -> None:
    rows = measure_group(_group(flip=False), torch.device("cpu"), seconds=0.01, compiled=False)
    side_by_side = next(iter(by_group([r.to_dict() for r in rows]).values()))
    assert side_by_side[OURS]["note"] == ""
    assert ratio(side_by_side, EAGER) > 0


def test_geometric_mean_leaves_out_what_was_not_measured() -> None:
    assert geometric_mean([2.0, None, 8.0]) == 4.0
    assert geometric_mean([None]) is None
