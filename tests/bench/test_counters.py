"""The committed counts: whatever moves more than the least has a reason, and counts do not depend on the batch."""

from __future__ import annotations

import json
from typing import Any

import pytest

from benchmarks.counters import FOLDER
from benchmarks.emulated_pages import AS_THE_LEAST, moved
from benchmarks.emulated_reasons import reason
from vdiff_fast import ops

ROWS: list[dict[str, Any]] = [
    row for path in sorted(FOLDER.glob("*.json")) for row in json.loads(path.read_text())["rows"]
]
COUNTED = [row for row in ROWS if "note" not in row]


def test_every_case_of_every_op_with_gpu_kernels_is_there() -> None:
    wanted = {
        (spec.name, case.name, backend)
        for spec in ops.specs()
        for case in spec.bench()
        for backend in ("cuda", "triton")
        if backend in spec.predicates
    }
    assert {(row["op"], row["case"], row["backend"]) for row in ROWS} == wanted


def test_whatever_moves_another_number_of_bytes_than_the_least_has_a_reason() -> None:
    others = [row for row in COUNTED if not AS_THE_LEAST[0] <= moved(row) <= AS_THE_LEAST[1]]
    assert all(reason(row) for row in others)


@pytest.mark.parametrize("op", ["layer_norm_modulate", "gated_residual_norm_modulate"])
@pytest.mark.parametrize("backend", ["cuda", "triton"])
def test_counts_for_an_element_do_not_depend_on_the_batch(op: str, backend: str) -> None:
    """dit_xl and latte are rows of 1152 elements, 2048 and 4096 of them."""
    forward = {
        row["case"]: row for row in COUNTED if (row["op"], row["backend"], row["direction"]) == (op, backend, "forward")
    }
    small, large = forward["dit_xl"], forward["latte"]
    assert 2 * small["elements"] == large["elements"]
    assert small["instructions_per_element"] == pytest.approx(large["instructions_per_element"], rel=0.01)
    assert moved(small) == pytest.approx(moved(large), rel=0.02)
