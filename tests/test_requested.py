"""use_backend: a statement is for the process, a block for its thread, and nothing stays behind."""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounter

import vdiff_fast as vf
from vdiff_fast import _dispatch, _requested
from vdiff_fast._requested import requested

X = torch.ones(2, 4)


def elsewhere(call: Callable[[], Any]) -> Any:
    """What a call gives in a thread of its own."""
    given: list[Any] = []
    thread = threading.Thread(target=lambda: given.append(call()))
    thread.start()
    thread.join()
    return given[0]


class _Reentrant(torch.autograd.Function):
    """Asks in its backward, `depth` backward passes down: from 60 on torch takes another thread, as it does on GPUs."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, depth: int, asked: set[tuple[int, str | None]]) -> Tensor:
        ctx.depth, ctx.asked = depth, asked
        return x.clone()

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        ctx.asked.add((threading.get_ident(), requested("geglu")))
        if ctx.depth:
            with torch.enable_grad():
                x = torch.ones(1, requires_grad=True)
                _Reentrant.apply(x, ctx.depth - 1, ctx.asked).backward()
        return dy, None, None


def test_a_backward_in_another_thread_sees_the_block_it_was_started_in() -> None:
    asked: set[tuple[int, str | None]] = set()
    with vf.use_backend("reference"):
        _Reentrant.apply(torch.ones(1, requires_grad=True), 70, asked).backward()
    assert len({thread for thread, _ in asked}) == 2
    assert {name for _, name in asked} == {"reference"}


def test_overlapping_blocks_of_two_threads_leave_nothing_behind() -> None:
    """One opens first and closes first: what each asked for is its own, and gone at the end."""
    steps = threading.Barrier(2, timeout=60)
    seen: dict[str, list[str | None]] = {"reference": [], "cpu": []}

    def work(name: str, first: bool) -> None:
        if not first:
            steps.wait()
        with vf.use_backend(name):
            if first:
                steps.wait()
            steps.wait()
            seen[name].append(requested("geglu"))
            steps.wait()
            if not first:
                steps.wait()
            seen[name].append(requested("geglu"))
        if first:
            steps.wait()
        seen[name].append(requested("geglu"))

    threads = [threading.Thread(target=work, args=arguments) for arguments in (("reference", True), ("cpu", False))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == {"reference": ["reference", "reference", None], "cpu": ["cpu", "cpu", None]}
    assert requested("geglu") is None


def test_a_thread_without_a_block_never_sees_that_of_another() -> None:
    """Not even between the call of use_backend and the start of its block."""
    interval = sys.getswitchinterval()
    over = threading.Event()

    def opening() -> None:
        while not over.is_set():
            with vf.use_backend("reference"), vf.use_backend("cpu", ops=["geglu"]):
                assert requested("geglu") == "cpu"

    thread = threading.Thread(target=opening)
    sys.setswitchinterval(1e-6)
    try:
        thread.start()
        assert {requested("geglu") for _ in range(20_000)} == {None}
    finally:
        sys.setswitchinterval(interval)
        over.set()
        thread.join()


def test_a_statement_holds_for_every_thread_until_the_block_around_it_ends() -> None:
    with vf.use_backend("cpu"):
        vf.use_backend("reference")
        vf.use_backend("sdpa", ops=["spatial_attention"])
        assert (requested("geglu"), requested("spatial_attention")) == ("reference", "sdpa")
        assert elsewhere(lambda: (requested("geglu"), requested("spatial_attention"))) == ("reference", "sdpa")
    assert requested("geglu") is None
    assert elsewhere(lambda: requested("spatial_attention")) is None


def test_a_statement_outside_every_block_stays() -> None:
    def ask() -> list[str | None]:
        answers = []
        for name in ("reference", "cpu", "auto"):
            vf.use_backend(name)
            vf.use_backend("triton", ops=["noise"])
            with vf.use_backend("auto", ops=["noise"]):
                answers += [requested("geglu"), requested("noise")]
            answers.append(requested("noise"))
        vf.use_backend(None)
        return answers

    before = len(_requested._process.settings)
    assert elsewhere(ask) == ["reference", None, "triton", "cpu", None, "triton", None, None, "triton"]
    assert elsewhere(lambda: requested("noise")) is None
    assert len(_requested._process.settings) <= before


def test_blocks_end_in_any_order_and_in_any_thread() -> None:
    first, second = vf.use_backend("cpu"), vf.use_backend("reference")
    with contextlib.ExitStack() as stack:
        stack.enter_context(first)
        second.__enter__()
        stack.pop_all().close()
        assert requested("geglu") == "reference"
        second.__exit__(None, None, None)
    assert requested("geglu") is None

    def generator() -> Iterator[str | None]:
        with vf.use_backend("reference"):
            yield requested("geglu")

    running = generator()
    assert next(running) == "reference"
    elsewhere(running.close)
    assert requested("geglu") is None
    with first, first:
        assert requested("geglu") == "cpu"
    assert requested("geglu") is None


def test_an_unknown_name_changes_nothing() -> None:
    with vf.use_backend("reference"):
        with pytest.raises(ValueError, match="unknown backend 'tritn'"):
            vf.use_backend("tritn", ops=["geglu"])
        assert requested("geglu") == "reference"


PREDICATES: dict[str, _dispatch.Predicate] = {"reference": lambda x: None, "cpu": lambda x: None}


def _choice(x: Tensor) -> Tensor:
    return x + 1 if _dispatch.choose("op", PREDICATES, x) == "reference" else x + 2


def test_a_compiled_function_follows_what_its_thread_asks_for() -> None:
    torch._dynamo.reset()
    counter = CompileCounter()
    compiled = torch.compile(_choice, fullgraph=True, backend=counter)

    def value() -> float:
        return float(compiled(X)[0, 0])

    def asking() -> float:
        with vf.use_backend("reference"):
            return value()

    assert value() == 3
    with vf.use_backend("reference"):
        assert (value(), elsewhere(value)) == (2, 3)
    with vf.use_backend("cpu"):
        assert (value(), elsewhere(asking)) == (3, 2)
    compiled_before = counter.frame_count
    assert (value(), asking(), elsewhere(value), elsewhere(asking)) == (3, 2, 3, 2)
    vf.use_backend("reference")
    assert value() == 2
    assert counter.frame_count == compiled_before, "what was asked for before has its graph"
    assert elsewhere(value) == 2


def test_a_block_in_a_compiled_function_is_part_of_its_graph() -> None:
    torch._dynamo.reset()
    counter = CompileCounter()

    def call(x: Tensor) -> Tensor:
        with vf.use_backend("reference"):
            return _choice(x)

    compiled = torch.compile(call, fullgraph=True, backend=counter)
    assert [float(compiled(X)[0, 0]) for _ in range(10)] == [2] * 10
    assert counter.frame_count == 1
    assert requested("op") is None


def test_an_observer_sees_its_own_thread() -> None:
    def other() -> list[_dispatch.Choice]:
        return _dispatch.observed(lambda: _dispatch.choose("theirs", PREDICATES, X))

    def call() -> None:
        _dispatch.choose("mine", PREDICATES, X)
        assert [choice.op for choice in elsewhere(other)] == ["theirs"]
        assert [choice.op for choice in other()] == ["theirs"]
        _dispatch.choose("mine too", PREDICATES, X)

    assert [choice.op for choice in _dispatch.observed(call)] == ["mine", "mine too"]
