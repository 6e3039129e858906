"""Share of every op in a training step, before (reference backend) and after (auto), by torch.profiler.

A call of an op in the forward is a range of its own. Its backward is found by sequence number: autograd names the node
of each forward call by the number that call had, and all top-level nodes of a backward are summed by it.
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.autograd.profiler_util import FunctionEvent
from torch.profiler import ProfilerActivity, profile, record_function

from vdiff_fast import ops
from vdiff_fast.bench.measure import interleaved
from vdiff_fast.bench.models import ModelCase, Steps, on_backend
from vdiff_fast.bench.report import environment

PREFIX = "vdiff_fast op: "
NODE = "autograd::engine::evaluate_function: "
CONVOLUTION, LINEAR, REST = "convolution", "linear", "everything else"
# What is no op of ours, by a part of the name of its kernel or autograd node.
LIBRARY_OPS = {
    CONVOLUTION: ("conv", "Convolution"),
    LINEAR: (
        "linear",
        "addmm",
        "aten::mm",
        "AddmmBackward",
        "MmBackward",
        "LinearBackward",
        "_QKVLinear",
        "_Linear",
        "_MLP",
    ),
}


def _public_functions() -> dict[str, Callable[..., Any]]:
    return {name: getattr(ops, name) for name in ops.__all__ if name != "rope_tables"}


@contextmanager
def ops_as_ranges() -> Iterator[None]:
    """Every op, wherever a module of the package holds it, runs in a range of the profiler named after it."""
    replaced: list[tuple[Any, str, Any]] = []

    def ranged(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            with record_function(PREFIX + name):
                return function(*args, **kwargs)

        return call

    wrappers = {id(f): ranged(name.removesuffix("_qkv"), f) for name, f in _public_functions().items()}
    for module in [m for n, m in sys.modules.items() if n.split(".")[0] == "vdiff_fast"]:
        for attribute, value in list(vars(module).items()):
            if id(value) in wrappers and callable(value):
                replaced.append((module, attribute, value))
                setattr(module, attribute, wrappers[id(value)])
    try:
        yield
    finally:
        for module, attribute, value in replaced:
            setattr(module, attribute, value)


def _library_op(name: str) -> str:
    return next((op for op, parts in LIBRARY_OPS.items() if any(part in name for part in parts)), REST)


def _milliseconds(event: FunctionEvent, cuda: bool) -> float:
    return float(event.device_time_total if cuda else event.cpu_time_total) / 1e3


def _range_above(event: FunctionEvent) -> str | None:
    """The op in whose range the event lies, the outermost where one op calls another."""
    found: str | None = None
    parent: FunctionEvent | None = event
    while parent is not None:
        if parent.name.startswith(PREFIX):
            found = parent.name.removeprefix(PREFIX)
        parent = parent.cpu_parent
    return found


def recorded(step: Callable[[], Any], device: torch.device, repeats: int = 1) -> list[FunctionEvent]:
    """What the profiler saw of some steps on the host, the ops in ranges of their own."""
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.type == "cuda" else [])]
    with ops_as_ranges(), profile(activities=activities) as profiler:
        for _ in range(repeats):
            step()
    return [e for e in profiler.events() if e.device_type == torch.autograd.DeviceType.CPU]


def attributed(events: list[FunctionEvent]) -> Iterator[tuple[str, FunctionEvent]]:
    """Every event that no other contains, and the op it belongs to: ours by name, else a kind of library op."""
    owner: dict[int, str] = {}
    for event in events:
        if event.sequence_nr >= 0 and not event.name.startswith(NODE) and (op := _range_above(event)):
            owner[event.sequence_nr] = op
    for event in events:
        if event.cpu_parent is not None:
            continue
        if event.name.startswith(PREFIX):
            yield event.name.removeprefix(PREFIX), event
        elif event.name.startswith(NODE) and event.sequence_nr in owner:
            yield owner[event.sequence_nr], event
        else:
            yield _library_op(event.name), event


def shares(step: Callable[[], Any], device: torch.device, repeats: int = 3) -> dict[str, float]:
    """Milliseconds of one step by op: forward ranges, backward nodes, and what is no op of ours by kind."""
    total: dict[str, float] = defaultdict(float)
    for op, event in attributed(recorded(step, device, repeats)):
        total[op] += _milliseconds(event, device.type == "cuda") / repeats
    return dict(total)


def profile_model(
    case: ModelCase, device: torch.device, *, seconds: float = 3.0, compiled: bool = False
) -> dict[str, Any]:
    """Step times without the profiler, and the milliseconds of every op with it, before and after."""
    steps = Steps(case, device)
    step = partial(steps.train, steps.model)
    calls = {"before": on_backend("reference", step), "after": on_backend(None, step)}
    timed = dict(calls)
    if compiled:
        torch._dynamo.reset()
        compiled_model = torch.compile(steps.model, dynamic=False)
        timed["before, compiled"] = on_backend("reference", partial(steps.train, compiled_model))
    timings = interleaved(timed, device=device, seconds=seconds, min_runs=3)
    return {
        "model": case.name,
        "shape": list(case.shape),
        "step_ms": {name: timing.median for name, timing in timings.items()},
        "ops_ms": {name: shares(call, device) for name, call in calls.items()},
    }


def table(result: dict[str, Any]) -> str:
    """One line an op: milliseconds and share of the step, before and after; the largest before comes first."""
    before, after = result["ops_ms"]["before"], result["ops_ms"]["after"]
    sums = {name: sum(values.values()) or 1.0 for name, values in result["ops_ms"].items()}
    lines = ["| op | before, ms | share | after, ms | share | x |", "| --- | --- | --- | --- | --- | --- |"]
    for op in sorted(before | after, key=lambda name: -before.get(name, 0.0)):
        old, new = before.get(op, 0.0), after.get(op, 0.0)
        times = f"{old / new:.1f}" if new else "-"
        lines.append(
            f"| {op} | {old:.1f} | {100 * old / sums['before']:.0f} % "
            f"| {new:.1f} | {100 * new / sums['after']:.0f} % | {times} |"
        )
    steps = ", ".join(f"{name} {ms:.0f} ms" for name, ms in result["step_ms"].items())
    ratio = result["step_ms"]["before"] / result["step_ms"]["after"]
    return "\n".join([f"{result['model']} {tuple(result['shape'])}, training step: {steps}; {ratio:.2f} x", "", *lines])


def write_profile(path: Path, results: list[dict[str, Any]], device: torch.device) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"environment": environment(device), "profiles": results}, indent=1) + "\n")
