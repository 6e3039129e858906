"""The order that `auto` reads follows from measurements, and auto follows it."""

from __future__ import annotations

import json

import pytest
import torch

from vdiff_fast import _dispatch, _measured, ops
from vdiff_fast._spec import BenchCase, Sample, randn
from vdiff_fast.bench import tune
from vdiff_fast.bench.cases import Group
from vdiff_fast.bench.tune import Measurement

PREFERRED = ("cpu", "reference")


def _measurement(elements: int, **ms: float) -> Measurement:
    return Measurement("op", f"case {elements}", "float32", "forward", elements, ms)


def test_the_fastest_comes_first() -> None:
    found = [_measurement(10, cpu=2.0, reference=1.0), _measurement(1000, cpu=20.0, reference=9.0)]
    assert tune.rows_by_size(found, PREFERRED) == [(None, ("reference", "cpu"))]


def test_a_lead_within_the_noise_changes_nothing() -> None:
    found = [_measurement(10, cpu=1.02, reference=1.0)]
    assert tune.rows_by_size(found, PREFERRED) == [(None, ("cpu", "reference"))]


def test_sizes_are_split_where_another_backend_wins_on_the_small_ones() -> None:
    small, large = _measurement(10, cpu=3.0, reference=1.0), _measurement(1000, cpu=10.0, reference=90.0)
    assert tune.rows_by_size([large, small], PREFERRED) == [(10, ("reference", "cpu")), (None, ("cpu", "reference"))]


def test_a_backend_that_failed_somewhere_is_not_ranked() -> None:
    found = [_measurement(10, cpu=1.0, reference=2.0, sdpa=0.1), _measurement(10, cpu=1.0, reference=2.0)]
    assert tune.rows_by_size(found, PREFERRED) == [(None, ("cpu", "reference"))]


def test_auto_follows_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    if _dispatch.order("op", torch.ones(1)) == _dispatch.INTERPRETER_ORDER:
        pytest.skip("the interpreter has its own order")
    rows = [(10, ("reference", "cpu")), (None, (_measured.INDUCTOR, "cpu"))]
    monkeypatch.setattr(_measured, "TABLES", {_measured.CPU: {"op": {"float32": {"forward": rows}}}})
    predicates = dict.fromkeys(("reference", "cpu", "sdpa"), _dispatch.why_not_reference)
    assert _dispatch.choose("op", predicates, torch.ones(10)) == "reference"
    assert _dispatch.choose("op", predicates, torch.ones(11)) == "cpu"
    assert _dispatch.order("op", torch.ones(11))[0] == _measured.INDUCTOR
    assert _dispatch.choose("op", predicates, torch.ones(3, dtype=torch.bfloat16)) == "cpu"
    assert _dispatch.choose("op", predicates, torch.ones(3, requires_grad=True)) == "cpu"


def test_traced_code_takes_the_reference_where_inductor_is_fastest(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [(None, (_measured.INDUCTOR, "cpu"))]
    monkeypatch.setattr(_measured, "TABLES", {_measured.CPU: {"op": {"float32": {"forward": rows}}}})
    monkeypatch.setattr(_dispatch._library, "INTERPRETING", False)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert _dispatch.order("op", torch.ones(11)) == ("reference", "cpu", "sdpa")


def test_a_measurement_names_every_backend_that_ran() -> None:
    spec = next(s for s in ops.specs() if s.name == "geglu")
    case = BenchCase("small", lambda device, dtype: Sample("x", (randn((8, 64), device, dtype),)))
    group = Group(spec, case, torch.float32, "forward")
    found = tune.measure(group, torch.device("cpu"), seconds=0.01, compiled=False)
    assert found is not None
    assert found.mode == "forward"
    assert found.elements == 8 * 64
    runs = {name for name, why in spec.predicates.items() if why(torch.ones(1)) is None}
    assert set(found.ms) == runs


def test_a_table_is_resumed_behind_what_failed(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[str] = []

    def measure(group: Group, *args: object, **options: object) -> Measurement:
        tried.append(group.id)
        if len(tried) == 1:
            raise RuntimeError("no kernel")
        return Measurement(*tune._key(group), 8, {"reference": 1.0})

    monkeypatch.setattr(tune, "measure", measure)
    options = {"seconds": 0.01, "folder": tmp_path}
    path = tune.tune("geglu", torch.device("cpu"), **options)
    first = json.loads(path.read_text())
    assert len(first["failed"]) == 1
    assert len(first["measurements"]) == len(tried) - 1
    before = len(tried)
    tune.tune("geglu", torch.device("cpu"), resume=True, **options)
    assert len(tried) == before
    assert json.loads(path.read_text())["measurements"] == first["measurements"]


def test_no_order_where_no_backend_ran_everywhere() -> None:
    assert tune.rows_by_size([_measurement(10, cpu=1.0), _measurement(20, reference=1.0)], PREFERRED) == []


@pytest.mark.parametrize("path", sorted(_measured.FOLDER.glob("*.json")), ids=lambda path: path.stem)
def test_committed_orders_follow_from_their_measurements(path) -> None:
    document = json.loads(path.read_text())
    found = [Measurement(**m) for m in document["measurements"]]
    device = "cpu" if path.stem.startswith("cpu") else "cuda"
    derived = json.loads(json.dumps(tune.orders(found, _dispatch.DEFAULT_ORDER[device])))
    assert derived == document["order"]
