"""Every Triton kernel and configuration compiled to sm_80, sm_90 and sm_100 cubins, without a GPU."""

from __future__ import annotations

import importlib

import pytest

import vdiff_fast as vf
from benchmarks.resources import SHARED_MEMORY_LIMIT, case_usage
from vdiff_fast import _library
from vdiff_fast._spec import AotCase, OpSpec

pytest.importorskip("triton", reason="Triton is not installed")
pytestmark = pytest.mark.aot

# All for sm_90, and every second for each of the others: `python -m benchmarks.resources` compiles all for all.
CASES = [
    pytest.param(spec, case, arch, id=f"{case.name}-sm_{arch}")
    for spec in vf.ops.specs()
    for number, case in enumerate(spec.aot())
    for arch in SHARED_MEMORY_LIMIT
    if arch == 90 or (number % 2 == 0) == (arch == 80)
]


@pytest.mark.parametrize(("spec", "case", "arch"), CASES)
def test_compiles_without_spills(spec: OpSpec, case: AotCase, arch: int) -> None:
    usage = case_usage(spec, case, arch)
    assert usage.registers > 0
    assert usage.shared <= SHARED_MEMORY_LIMIT[arch]
    assert usage.local <= case.max_spills, usage


@pytest.mark.skipif(_library.INTERPRETING, reason="the interpreter replaces what this compiles")
def test_every_room_with_triton_kernels_has_aot_cases() -> None:
    for spec in vf.ops.specs():
        if importlib.util.find_spec(f"{spec.module}.triton") is not None:
            assert list(spec.aot()), f"{spec.name} has triton.py but no AOT case in its spec"
