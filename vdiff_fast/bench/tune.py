"""Measure every backend of an op and write the order that `auto` reads: `vdiff-fast bench --tune`."""

from __future__ import annotations

import json
import math
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

import vdiff_fast as vf
from vdiff_fast import _dispatch, _measured, ops
from vdiff_fast._spec import Sample
from vdiff_fast.bench.cases import (
    COMPILE,
    EAGER,
    OURS,
    Group,
    by_importance,
    groups,
    implementations,
    measure_group,
    sample_of,
)
from vdiff_fast.bench.measure import device_is_lost
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
    sample = sample_of(group.case, device, group.dtype)
    rows = measure_group(group, device, seconds=seconds, candidates=_candidates(group, device, compiled))
    names = {EAGER: "reference", COMPILE: _measured.INDUCTOR}
    ms = {names.get(r.implementation, r.implementation): r.median_ms for r in rows if r.implementation != OURS}
    timed = {name: value for name, value in ms.items() if value is not None}
    if not timed:
        return None
    return Measurement(*_key(group), _elements(group, sample), timed)


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
    """One row, or two where another backend wins on the small sizes and the split saves more than CLEAR_GAIN.

    None where no backend ran every case.
    """
    ordered = sorted(measurements, key=lambda m: m.elements)
    best: list[tuple[int | None, tuple[str, ...]]] = [(None, ranking(ordered, preferred))]
    if not best[0][1]:
        return []
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
    compiled: bool = True, progress: Callable[[str], None] = lambda line: None, folder: Path | None = None,
    limit: float | None = None, resume: bool = False,
) -> Path:  # fmt: skip
    """Measure the backends of an op (of all for None) and write its part of this architecture's table.

    The table is written after every case, so that what ends early leaves what it measured; a case that raises is
    listed under "failed".

    Args:
        folder: where tables lie; the package's own, which `auto` reads, where left out.
        limit: no case is begun after this many seconds.
        resume: keep what the table holds and measure what it lacks.

    Raises:
        RuntimeError: a kernel's fault ended the CUDA context; the table holds what was measured before.
    """
    deadline = float("inf") if limit is None else time.monotonic() + limit
    path = (folder or _measured.FOLDER) / f"{_measured.architecture(device)}.json"
    document = json.loads(path.read_text()) if path.exists() and (resume or op is not None) else {}
    found = [Measurement(**m) for m in document.get("measurements", ()) if resume or m["op"] != op]
    failed = [list(key) for key in document.get("failed", ()) if resume or key[0] != op]
    done = {(m.op, m.case, m.dtype, m.mode) for m in found} | {tuple(key) for key in failed}
    for _, group in by_importance(groups(device, dtypes, op)):
        key = _key(group)
        if key in done:
            continue
        if time.monotonic() > deadline:
            progress(f"no time left for {group.id} and what follows")
            break
        progress(group.id)
        # Stands there while the case is measured: a fault that ends the process is not met again on resuming.
        write(path, found, device, [*failed, list(key)])
        try:
            measurement = measure(group, device, seconds=seconds, compiled=compiled)
            found += [measurement] if measurement is not None else []
        except Exception as error:
            failed.append(list(key))
            progress(f"{group.id}: {error!r}")
        if device_is_lost(device):
            raise RuntimeError(f"the CUDA context is lost in {group.id}")
    write(path, found, device, failed)
    return path


def _key(group: Group) -> tuple[str, str, str, str]:
    mode = "forward" if group.direction == "forward" else "training"
    return group.spec.name, group.case.name, str(group.dtype).removeprefix("torch."), mode


def write(
    path: Path, measurements: Sequence[Measurement], device: torch.device, failed: Sequence[list[str]] = ()
) -> None:
    """The table with its measurements, from which a test derives the order again."""
    known = {spec.name for spec in ops.specs()}
    measurements = sorted((m for m in measurements if m.op in known), key=lambda m: (m.op, m.dtype, m.mode, m.elements))
    document = {
        "environment": environment(device),
        "order": orders(measurements, _dispatch.DEFAULT_ORDER[device.type]),
        "measurements": [asdict(m) for m in measurements],
    } | ({"failed": list(failed)} if failed else {})
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=1) + "\n")
