"""Every Triton kernel and configuration compiled to sm_80, sm_90 and sm_100 cubins, without a GPU."""

from __future__ import annotations

import importlib
import re

import pytest

import vdiff_fast as vf
from benchmarks.resources import SHARED_MEMORY_LIMIT, compile_case, compiled_usage
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
    compiled = compile_case(spec, case, arch)
    usage = compiled_usage(case, arch, compiled)
    assert usage.registers > 0
    assert usage.shared <= SHARED_MEMORY_LIMIT[arch]
    assert usage.local <= case.max_spills, usage
    assert products_fused_into_a_shuffled_sum(compiled.asm["ptx"]) == []


def products_fused_into_a_shuffled_sum(ptx: str) -> list[str]:
    """The instructions fma(a, b, shuffle(a * b)): a lane and the one opposite round their common sum in two ways."""
    products: set[str] = set()
    shuffled: dict[str, str] = {}
    moved: dict[str, str] = {}  # from one register's type to another's
    fused = []
    for predicate, opcode, operands in re.findall(r"^\s*(@\S+\s+)?([a-z][\w.:]*)\s+(%[^;]*);", ptx, re.MULTILINE):
        target, *sources = (moved.get(name, name) for name in re.findall(r"%\w+", operands))
        if opcode.startswith("mul.") and opcode.endswith("f32"):
            products.add(target)
        elif opcode == "mov.b32" and sources:
            moved[target] = sources[0]
        elif opcode.startswith("shfl."):
            shuffled[target] = sources[0]
        elif opcode.startswith("fma.") and sources and shuffled.get(sources[-1]) in products:
            fused.append(f"{predicate}{opcode} {operands}")
    return fused


def test_a_product_fused_into_a_shuffled_sum_is_seen() -> None:
    product, shuffle = "mul.f32 \t%r7, %r1, %r1;", "shfl.sync.bfly.b32 \t%r8, %r7, 16, 31, -1;"
    assert products_fused_into_a_shuffled_sum(f"{product}\n{shuffle}\n\tfma.rn.f32 \t%r9, %r1, %r1, %r8;")
    assert not products_fused_into_a_shuffled_sum(f"{product}\n{shuffle}\n\tadd.f32 \t%r9, %r7, %r8;")


@pytest.mark.skipif(_library.INTERPRETING, reason="the interpreter replaces what this compiles")
def test_every_room_with_triton_kernels_has_aot_cases() -> None:
    for spec in vf.ops.specs():
        if importlib.util.find_spec(f"{spec.module}.triton") is not None:
            assert list(spec.aot()), f"{spec.name} has triton.py but no AOT case in its spec"
