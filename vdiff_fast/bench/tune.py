"""Measure every backend of an op and write the order that `auto` reads: `vdiff-fast bench --tune`."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

import vdiff_fast as vf
from vdiff_fast import _dispatch, _measured, ops
from vdiff_fast._spec import Sample
from vdiff_fast.bench.cases import COMPILE, EAGER, OURS, Group, groups, implementations, measure_group
from vdiff_fast.bench.report import environment

# A backend is put before the one preferred without a measurement only where it is faster by more than this share.
CLEAR_GAIN = 0.05


@dataclass(frozen=True)
class Measurement:
    """Milliseconds of every backend that ran one benchmark case and was right."""

    op: str
    case: str
    dtype: str
    mode: str
    elements: int
    ms: dict[str, float]


def _named(spec: Any, backend: str) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        with vf.use_backend(backend, ops=[spec.name]):
            return spec.function(*args, **kwargs)

    return call


def _candidates(group: Group, device: torch.device, compiled: bool) -> dict[str, Callable[..., Any]]:
    """Every backend of the op by name, and the reference under torch.compile."""
    backends = {name: _named(group.spec, name) for name in group.spec.predicates if name != "reference"}
    plain = implementations(group.spec, device, compiled=compiled)
    return {OURS: plain[OURS], **backends, **{name: plain[name] for name in (EAGER, COMPILE) if name in plain}}


def measure(group: Group, device: torch.device, *, seconds: float, compiled: bool) -> Measurement | None:
    """Time every backend of one case, after checking each; None where the op has no such direction."""
    sample = group.case.sample(device, group.dtype)
    rows = measure_group(group, device, seconds=seconds, candidates=_candidates(group, device, compiled))
    names = {EAGER: "reference", COMPILE: _measured.INDUCTOR}
    ms = {names.get(r.implementation, r.implementation): r.median_ms for r in rows if r.implementation != OURS}
    timed = {name: value for name, value in ms.items() if value is not None}
    if not timed:
        return None
    mode = "forward" if group.direction == "forward" else "training"
    return Measurement(group.spec.name, group.case.name, str(group.dtype).removeprefix("torch."), mode,
                       _elements(group, sample), timed)  # fmt: skip


def _elements(group: Group, sample: Sample) -> int:
    with torch.no_grad():
        choices = _dispatch.observed(lambda: group.spec.function(*sample.args, **sample.kwargs))
    return next(c.elements for c in choices if c.op == group.spec.name)


def ranking(measurements: Sequence[Measurement], preferred: Sequence[str]) -> tuple[str, ...]:
    """Backends from fastest to slowest by geometric mean of the cases that all of them ran.

    A lead of CLEAR_GAIN or less is no lead: the preferred order stands.
    """
    everywhere = [name for name in measurements[0].ms if all(name in m.ms for m in measurements)]

    def cost(name: str) -> float:
        mean = math.exp(sum(math.log(m.ms[name]) for m in measurements) / len(measurements))
        return mean if name in preferred[:1] else mean * (1 + CLEAR_GAIN)

    return tuple(sorted(everywhere, key=cost))


def rows_by_size(
    measurements: Sequence[Measurement], preferred: Sequence[str]
) -> list[tuple[int | None, tuple[str, ...]]]:
    """One row, or two where another backend wins on the small sizes and the split saves more than CLEAR_GAIN."""
    ordered = sorted(measurements, key=lambda m: m.elements)
    best: list[tuple[int | None, tuple[str, ...]]] = [(None, ranking(ordered, preferred))]
    least = _log_time(ordered, best[0][1][0])
    for cut in range(1, len(ordered)):
        if ordered[cut - 1].elements == ordered[cut].elements:
            continue
        small, large = ranking(ordered[:cut], preferred), ranking(ordered[cut:], preferred)
        total = _log_time(ordered[:cut], small[0]) + _log_time(ordered[cut:], large[0])
        if small[0] != large[0] and total < least - math.log1p(CLEAR_GAIN) * len(ordered):
            least, best = total, [(ordered[cut - 1].elements, small), (None, large)]
    return best


def _log_time(measurements: Sequence[Measurement], backend: str) -> float:
    return sum(math.log(m.ms[backend]) for m in measurements)


def orders(measurements: Sequence[Measurement], preferred: Sequence[str]) -> dict[str, _measured.OpOrder]:
    """The `order` of a table: op -> dtype -> mode -> rows."""
    grouped: dict[tuple[str, str, str], list[Measurement]] = defaultdict(list)
    for m in measurements:
        grouped[m.op, m.dtype, m.mode].append(m)
    table: dict[str, _measured.OpOrder] = defaultdict(lambda: defaultdict(dict))
    for (op, dtype, mode), found in grouped.items():
        table[op][dtype][mode] = rows_by_size(found, preferred)
    return {op: dict(dtypes) for op, dtypes in table.items()}


def tune(
    op: str | None, device: torch.device, *, dtypes: tuple[torch.dtype, ...] | None = None, seconds: float = 0.5,
    compiled: bool = True, progress: Callable[[str], None] = lambda line: None,
) -> Path:  # fmt: skip
    """Measure the backends of an op (of all for None) and write its part of this architecture's table."""
    name = _measured.architecture(device)
    path = _measured.FOLDER / f"{name}.json"
    kept = []
    if path.exists() and op is not None:
        kept = [Measurement(**m) for m in json.loads(path.read_text())["measurements"] if m["op"] != op]
    found = []
    for group in groups(device, dtypes, op):
        progress(group.id)
        measurement = measure(group, device, seconds=seconds, compiled=compiled)
        found += [measurement] if measurement is not None else []
    write(path, kept + found, device)
    return path


def write(path: Path, measurements: Sequence[Measurement], device: torch.device) -> None:
    """The table with its measurements, from which a test derives the order again."""
    known = {spec.name for spec in ops.specs()}
    measurements = sorted((m for m in measurements if m.op in known), key=lambda m: (m.op, m.dtype, m.mode, m.elements))
    document = {
        "environment": environment(device),
        "order": orders(measurements, _dispatch.DEFAULT_ORDER[device.type]),
        "measurements": [asdict(m) for m in measurements],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=1) + "\n")
