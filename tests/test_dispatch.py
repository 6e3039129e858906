"""Backends: auto takes what runs, a name runs or raises the reason, and what was asked for is given back."""

from __future__ import annotations

import pytest
import torch

import vdiff_fast as vf
from vdiff_fast import _dispatch

X = torch.ones(2, 4)


def _predicates(**reasons: str | None) -> dict[str, _dispatch.Predicate]:
    return {name: (lambda x, *facts, reason=reason: reason) for name, reason in reasons.items()}


def test_auto_takes_the_first_that_can_run() -> None:
    assert _dispatch.choose("op", _predicates(reference=None, cpu=None), X) in ("cpu", "reference")
    assert _dispatch.choose("op", _predicates(reference=None, cpu="d is 7"), X) == "reference"


def test_a_name_raises_the_exact_reason() -> None:
    with vf.use_backend("cpu"), pytest.raises(vf.BackendUnavailableError, match=r"op: backend 'cpu' .* but d is 7"):
        _dispatch.choose("op", _predicates(reference=None, cpu="d is 7"), X)


def test_a_name_that_the_op_lacks_lists_what_it_has() -> None:
    with vf.use_backend("xformers"), pytest.raises(vf.BackendUnavailableError, match="it has reference"):
        _dispatch.choose("op", _predicates(reference=None), X)


def test_unknown_backend_is_a_value_error() -> None:
    with pytest.raises(ValueError, match="unknown backend 'tritn'; choose from auto, reference"):
        vf.use_backend("tritn")


def test_with_block_restores_and_ops_narrows() -> None:
    vf.use_backend("reference")
    with vf.use_backend("cpu", ops=["op"]):
        assert _dispatch.choose("op", _predicates(reference=None, cpu=None), X) == "cpu"
        assert _dispatch.choose("other", _predicates(reference=None, cpu=None), X) == "reference"
    assert _dispatch.choose("op", _predicates(reference=None, cpu=None), X) == "reference"
    vf.use_backend("auto")
    assert _dispatch.requested("op") is None


def test_doctor_names_every_op_and_every_reason() -> None:
    report = vf.doctor()
    assert {status.op for status in report.ops} == {spec.name for spec in vf.ops.specs()}
    text = str(report)
    assert torch.__version__ in text
    for status in report.ops:
        assert status.chosen not in status.reasons
        assert all(reason in text for reason in status.reasons.values())
