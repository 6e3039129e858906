"""Benchmark cases of every op, from its OpSpec: ours, eager, torch.compile and the peers that the spec names."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from vdiff_fast import _dispatch, ops
from vdiff_fast._spec import BenchCase, OpSpec, Sample
from vdiff_fast.bench.measure import (
    Call,
    copy_bandwidth,
    device_is_lost,
    graph_replay,
    host_microseconds,
    interleaved,
    peak_bytes,
)

OURS, EAGER, COMPILE, MAX_AUTOTUNE = "vdiff_fast", "eager", "compile", "compile max-autotune"
DIRECTIONS = ("forward", "forward+backward")
# What is measured first where time is short: the ops that take most of a step, and those of every step.
IMPORTANCE = (
    "group_norm_silu",
    "temporal_attention",
    "gated_residual_norm_modulate",
    "layer_norm_modulate",
    "q_sample",
    "diffusion_loss",
    "sampler_step",
)
UNCHECKED = "not checked"


@dataclass(frozen=True)
class Group:
    """One op, shape, dtype and direction: what stands side by side in a table."""

    spec: OpSpec
    case: BenchCase
    dtype: torch.dtype
    direction: str

    @property
    def id(self) -> str:
        return f"{self.spec.name}-{self.case.name}-{str(self.dtype).removeprefix('torch.')}-{self.direction}"

    @property
    def bytes_moved(self) -> int | None:
        forward, backward = self.case.bytes_forward, self.case.bytes_backward
        moved = (forward,) if self.direction == "forward" else (forward, backward)
        known = [m for m in moved if m is not None]
        return sum(known) * self.dtype.itemsize // 4 if len(known) == len(moved) else None


@dataclass(frozen=True)
class Row:
    """One implementation of a group, as written to JSON. Times in milliseconds."""

    op: str
    case: str
    dtype: str
    direction: str
    implementation: str
    backend: str
    median_ms: float | None
    low_ms: float | None = None
    high_ms: float | None = None
    gb_per_s: float | None = None
    percent_of_copy: float | None = None
    error: float | None = None
    error_in_eager_units: float | None = None
    host_us: float | None = None
    peak_bytes: int | None = None
    graph_ms: float | None = None
    note: str = ""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def groups(
    device: torch.device, dtypes: tuple[torch.dtype, ...] | None = None, op: str | None = None
) -> Iterator[Group]:
    """Every group of every op; where no dtypes are given, bfloat16 and float32 on a GPU, the case's own on a CPU."""
    for spec in ops.specs():
        if op is not None and spec.name != op:
            continue
        for case in spec.bench():
            if device.type == "cpu" and "gpu" in case.tags:
                continue
            for dtype in dtypes or ((torch.bfloat16, torch.float32) if device.type == "cuda" else case.cpu_dtypes):
                for direction in DIRECTIONS:
                    yield Group(spec, case, dtype, direction)


def by_importance(found: Iterable[Group]) -> list[tuple[int, Group]]:
    """The first case of every op, then the second of every op, ...: (number of the case from 0, group).

    Ops in the order of IMPORTANCE, then in the order given; so are the dtypes and directions of a case.
    """
    cases: dict[str, list[str]] = defaultdict(list)
    numbered = []
    for group in found:
        names = cases[group.spec.name]
        if group.case.name not in names:
            names.append(group.case.name)
        numbered.append((names.index(group.case.name), group))
    rank = {op: place for place, op in enumerate(dict.fromkeys((*IMPORTANCE, *cases)))}
    return sorted(numbered, key=lambda pair: (pair[0], rank[pair[1].spec.name]))


@lru_cache(maxsize=1)
def sample_of(case: BenchCase, device: torch.device, dtype: torch.dtype) -> Sample:
    """The call of a case; its directions, measured one after another, share it: drawing large ones takes seconds."""
    return case.sample(device, dtype)


def _leaves(sample: Sample) -> Sample:
    return sample.map_tensors(
        lambda t: t.detach().clone(memory_format=torch.preserve_format).requires_grad_(t.requires_grad)
    )


def _differentiable(outputs: Any) -> list[Tensor]:
    return [o for o in (outputs if isinstance(outputs, tuple) else (outputs,)) if o.requires_grad]


def make_call(function: Callable[..., Any], sample: Sample, direction: str) -> Call:
    """A call without arguments; forward+backward sends a dense gradient of ones through every output."""
    if direction == "forward":

        def forward() -> Any:
            with torch.no_grad():
                return function(*sample.args, **sample.kwargs)

        return forward
    inputs = sample.differentiable()
    cotangents = [torch.ones_like(o) for o in _differentiable(function(*sample.args, **sample.kwargs))]

    def both() -> Any:
        outputs = _differentiable(function(*sample.args, **sample.kwargs))
        return torch.autograd.grad(outputs, inputs, cotangents, allow_unused=True)

    return both


def implementations(
    spec: OpSpec, device: torch.device, *, compiled: bool = True, autotune: bool = False
) -> dict[str, Callable[..., Any]]:
    """Ours first, then eager, torch.compile of eager (`autotune`: max-autotune too), and the spec's peers.

    Not `compiled`: nothing that torch compiles, compiled peers neither.
    """
    found: dict[str, Callable[..., Any]] = {OURS: spec.function, EAGER: spec.reference}
    if compiled:
        torch._dynamo.reset()
        found[COMPILE] = torch.compile(spec.reference, dynamic=False)
        if autotune and device.type == "cuda":
            found[MAX_AUTOTUNE] = torch.compile(spec.reference, dynamic=False, mode="max-autotune-no-cudagraphs")
    return found | {name: peer for name, peer in spec.peers.items() if compiled or not _is_compiled(name)}


def _is_compiled(peer: str) -> bool:
    return peer == "flex" or peer.endswith(" compiled")


def _flat(result: Any) -> list[Tensor]:
    values = result if isinstance(result, tuple | list) else (result,)
    return [v.detach() for v in values if isinstance(v, Tensor)]


def _distance(actual: list[Tensor], exact: list[Tensor]) -> float:
    worst = 0.0
    for a, e in zip(actual, exact):
        scale = float(e.double().norm()) or 1.0
        distance = float((a.double() - e.double()).norm()) / scale
        worst = max(worst, distance if distance == distance else float("inf"))
    return worst


def _exact(group: Group, sample: Sample) -> list[Tensor] | None:
    """The result in float64; None where the device's memory does not hold it."""
    wide = sample.map_tensors(
        lambda t: t.detach().double().requires_grad_(t.requires_grad) if t.is_floating_point() else t
    )
    try:
        return _flat(make_call(group.spec.reference, wide, group.direction)())
    except torch.OutOfMemoryError:
        torch.cuda.empty_cache()
        return None


def cannot_run(error: Exception) -> str:
    """One line that names the error, whether or not it has a message."""
    text = str(error).strip() or repr(error)
    return f"cannot run: {text.splitlines()[0][:120]}"


def first_row(group: Group, implementation: str = OURS, note: str = "") -> Row:
    """The row of an implementation that has no time yet."""
    return Row(
        op=group.spec.name,
        case=group.case.name,
        dtype=str(group.dtype).removeprefix("torch."),
        direction=group.direction,
        implementation=implementation,
        backend="",
        median_ms=None,
        note=note,
    )


def measure_group(
    group: Group,
    device: torch.device,
    *,
    seconds: float = 1.0,
    compiled: bool = True,
    autotune: bool = False,
    copy_gb_per_s: float | None = None,
    candidates: Mapping[str, Callable[..., Any]] | None = None,
) -> list[Row]:
    """Check every implementation against float64, then time those that are right, interleaved.

    `candidates` takes the place of ours, eager, torch.compile and the spec's peers. No rows for the
    backward of an op without one. An implementation that raises is noted and the others are measured; where float64
    does not fit the device's memory all are timed, and noted as not checked.
    """
    try:
        sample = _leaves(sample_of(group.case, device, group.dtype))
        if group.direction != "forward" and not sample.differentiable():
            return []
        exact = _exact(group, sample)
    except Exception as error:
        return [first_row(group, note=cannot_run(error))]
    errors: dict[str, float] = {}
    calls: dict[str, Call] = {}
    rows: dict[str, Row] = {}
    for name, function in (
        candidates or implementations(group.spec, device, compiled=compiled, autotune=autotune)
    ).items():
        row = first_row(group, name)
        # Any error: Triton's and an absent library's have types of their own.
        try:
            row = replace(row, backend=_backend_of(group, sample) if name == OURS else "")
            call = make_call(function, sample, group.direction)
            result = _flat(call())
            if exact is None:
                rows[name] = replace(row, note=f"{UNCHECKED}: float64 does not fit the device's memory")
            else:
                errors[name] = _distance(result, exact)
                rows[name] = replace(row, error=errors[name])
            del result
            calls[name] = call
        except Exception as error:
            rows[name] = replace(row, note=cannot_run(error))
            if device_is_lost(device):
                return list(rows.values())
            if isinstance(error, torch.OutOfMemoryError):
                torch.cuda.empty_cache()
    del exact
    allowed = _allowed_error(group, errors.get(EAGER, 0.0))
    for name in list(calls):
        limit = allowed[name == OURS or name in group.spec.predicates]
        if name not in group.spec.random_peers and errors.get(name, 0.0) > limit:
            rows[name] = replace(rows[name], note=f"wrong: error {errors[name]:.1e} > {limit:.1e}")
            del calls[name]
    try:
        timings = interleaved(calls, device=device, seconds=seconds)
        for name, timing in timings.items():
            rows[name] = _timed(rows[name], group, timing, calls[name], device, copy_gb_per_s, errors.get(EAGER, 0.0))
    except Exception as error:
        for name in calls:
            if rows[name].median_ms is None:
                rows[name] = replace(rows[name], note=cannot_run(error))
    return list(rows.values())


def _allowed_error(group: Group, eager: float) -> dict[bool, float]:
    """Ours: the spec's multiple of eager's error. Peers: ten times eager's, enough to catch a wrong answer."""
    unit = max(eager, torch.finfo(group.dtype).eps / 2)
    return {True: group.spec.error_multiple * unit, False: 10 * unit}


def _timed(
    row: Row, group: Group, timing: Any, call: Call, device: torch.device, copy_gb_per_s: float | None, eager: float
) -> Row:
    moved = group.bytes_moved
    speed = None if moved is None else moved / (timing.median * 1e-3) / 1e9
    graph_ms = None
    if device.type == "cuda" and (replay := graph_replay(call)) is not None:
        graph_ms = interleaved({"graph": replay}, device=device, seconds=0.1)["graph"].median
    return replace(
        row,
        median_ms=timing.median,
        low_ms=timing.low,
        high_ms=timing.high,
        gb_per_s=speed,
        percent_of_copy=100 * speed / copy_gb_per_s if speed is not None and copy_gb_per_s else None,
        error_in_eager_units=None if row.error is None else row.error / max(eager, torch.finfo(group.dtype).eps / 2),
        host_us=_host_us(call, timing.median, device) if device.type == "cuda" else None,
        peak_bytes=peak_bytes(call, device),
        graph_ms=graph_ms,
    )


def _host_us(call: Call, median_ms: float, device: torch.device) -> float:
    """Of fewer calls where one takes long: a fifth of a second in all."""
    return host_microseconds(call, device=device, calls=max(3, min(50, int(200 / median_ms))))


def _backend_of(group: Group, sample: Sample) -> str:
    choices = _dispatch.observed(lambda: group.spec.function(*sample.args, **sample.kwargs))
    return next((c.backend for c in choices if c.op == group.spec.name), "")


def measure_op(
    op: str | None, device: torch.device, *, seconds: float = 1.0, dtypes: tuple[torch.dtype, ...] | None = None,
    progress: Callable[[str], None] = lambda line: None, compiled: bool = True,
) -> tuple[list[Row], float]:  # fmt: skip
    """Rows of every group of an op (of all ops for None), and the copy bandwidth measured in the same run."""
    copy = copy_bandwidth(device)
    rows: list[Row] = []
    for group in groups(device, dtypes, op):
        progress(group.id)
        rows += measure_group(group, device, seconds=seconds, copy_gb_per_s=copy, compiled=compiled)
    return rows, copy
