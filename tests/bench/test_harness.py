"""The harness itself: a wrong kernel reports no time."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from vdiff_fast import ops
from vdiff_fast._spec import BenchCase, Sample, randn
from vdiff_fast.bench.cases import (
    EAGER,
    IMPORTANCE,
    OURS,
    UNCHECKED,
    Group,
    by_importance,
    groups,
    implementations,
    measure_group,
)
from vdiff_fast.bench.report import by_group, geometric_mean, markdown_table, ratio


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


def _raises(message: str) -> Any:
    class ForeignError(Exception):
        pass

    def call(x: torch.Tensor) -> torch.Tensor:
        raise ForeignError(*([message] if message else []))

    return call


def test_an_implementation_that_raises_is_noted_and_the_others_are_timed() -> None:
    group = _group(flip=False)
    spec = replace(group.spec, peers={"talks": _raises("absent\nlibrary"), "silent": _raises("")})
    rows = measure_group(replace(group, spec=spec), torch.device("cpu"), seconds=0.01, compiled=False)
    found = {row.implementation: row for row in rows}
    assert found["talks"].note == "cannot run: absent"
    assert found["silent"].note == "cannot run: ForeignError()"
    assert found[OURS].median_ms > 0
    assert found[EAGER].median_ms > 0


def test_a_case_that_float64_does_not_fit_is_timed_and_noted() -> None:
    group = _group(flip=False)
    right = group.spec.reference

    def small(x: torch.Tensor) -> torch.Tensor:
        if x.dtype == torch.float64:
            raise torch.OutOfMemoryError
        return right(x)

    spec = replace(group.spec, reference=small)
    rows = [row.to_dict() for row in measure_group(replace(group, spec=spec), torch.device("cpu"), seconds=0.01,
                                                   compiled=False)]  # fmt: skip
    assert all(row["note"].startswith(UNCHECKED) and row["error"] is None and row["median_ms"] > 0 for row in rows)
    assert f", {UNCHECKED}" in markdown_table(rows)


def test_the_first_case_of_every_op_comes_before_a_second() -> None:
    ordered = by_importance(groups(torch.device("cpu")))
    assert len(ordered) == len(list(groups(torch.device("cpu"))))
    numbers = [number for number, _ in ordered]
    assert numbers == sorted(numbers)
    first = list(dict.fromkeys(group.spec.name for number, group in ordered if number == 0))
    assert first[: len(IMPORTANCE)] == list(IMPORTANCE)
    assert set(first) == {spec.name for spec in ops.specs() if list(spec.bench())}


def test_what_torch_compiles_is_left_out_with_its_peers() -> None:
    spec = next(s for s in ops.specs() if s.name == "temporal_attention")
    names = set(implementations(spec, torch.device("cpu"), compiled=False))
    assert names == {OURS, EAGER, "sdpa", "xformers"}
