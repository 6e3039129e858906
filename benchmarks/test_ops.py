"""One case per op, shape, dtype and direction: pytest-benchmark times ours, and between its rounds every peer runs.

`cpu_smoke` cases are small, run in CI, and fail on a wrong result or on a clear slowdown against eager: a ratio taken
in one run, never an absolute time.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from benchmarks.conftest import ROWS
from vdiff_fast import ops
from vdiff_fast._spec import Sample
from vdiff_fast.bench.cases import EAGER, OURS, UNCHECKED, Group, _leaves, groups, make_call, measure_group
from vdiff_fast.bench.report import by_group, ratio

# Below this ratio to eager a case is a clear slowdown, beyond what two noisy cores explain.
CLEAR_SLOWDOWN = 0.5


def _smoke_groups() -> list[Any]:
    """The smallest benchmark shape of every op that has kernels here."""
    chosen = []
    for spec in ops.specs():
        cases = [case for case in spec.bench() if "gpu" not in case.tags]
        if "cpu" not in spec.predicates or not cases:
            continue
        smallest = min(cases, key=lambda c: c.bytes_forward or 1 << 62)
        chosen.append(pytest.param(Group(spec, smallest, torch.float32, "forward"), id=f"cpu_smoke-{spec.name}"))
    return chosen


def _all_groups() -> list[Any]:
    where = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return [pytest.param(group, id=group.id) for group in groups(where)]


@pytest.mark.parametrize("group", _smoke_groups())
def test_cpu_smoke(group: Group, benchmark: Any) -> None:
    cpu = torch.device("cpu")
    for _attempt in range(3):
        rows = [row.to_dict() for row in measure_group(group, cpu, seconds=0.3, compiled=False)]
        ((_, side_by_side),) = by_group(rows).items()
        assert not side_by_side[OURS]["note"], side_by_side[OURS]["note"]
        against_eager = ratio(side_by_side, EAGER)
        if against_eager is not None and against_eager > CLEAR_SLOWDOWN:
            break
    else:
        pytest.fail(f"{group.id}: {against_eager:.2f} x eager in three runs")
    ROWS.extend(rows)
    benchmark.pedantic(_call(group, _leaves(group.case.sample(cpu, group.dtype))), rounds=5)
    benchmark.extra_info["rows"] = rows


@pytest.mark.parametrize("group", _all_groups())
def test_op(group: Group, device: torch.device, benchmark: Any) -> None:
    rows = [row.to_dict() for row in measure_group(group, device)]
    if not rows:
        pytest.skip("nothing to differentiate")
    ours = next(row for row in rows if row["implementation"] == OURS)
    assert not ours["note"] or ours["note"].startswith(UNCHECKED), ours["note"]
    ROWS.extend(rows)
    benchmark.group = group.id
    benchmark.pedantic(_call(group, _leaves(group.case.sample(device, group.dtype))), rounds=5)
    benchmark.extra_info["rows"] = rows


def _call(group: Group, sample: Sample) -> Any:
    return make_call(group.spec.function, sample, group.direction)
