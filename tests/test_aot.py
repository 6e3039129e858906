"""Every Triton kernel and configuration compiled to sm_80, sm_90 and sm_100 cubins, without a GPU."""

from __future__ import annotations

import importlib
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

import vdiff_fast as vf
from vdiff_fast import _library
from vdiff_fast._spec import AotCase, OpSpec

pytest.importorskip("triton", reason="Triton is not installed")
pytestmark = pytest.mark.aot

SHARED_MEMORY_LIMIT = {80: 163 * 1024, 90: 227 * 1024, 100: 227 * 1024}
CASES = [
    pytest.param(spec, case, arch, id=f"{case.name}-sm_{arch}")
    for spec in vf.ops.specs()
    for case in spec.aot()
    for arch in SHARED_MEMORY_LIMIT
]


def compile_case(spec: OpSpec, case: AotCase, arch: int) -> Any:
    """A compiled kernel: `.asm["cubin"]`, `.metadata.shared`."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    kernel = getattr(importlib.import_module(f"{spec.module}.triton"), case.kernel)
    names = list(kernel.arg_names)
    signature = {n: "constexpr" if n in case.constants else case.signature[n] for n in names}
    attributes = {(names.index(n),): [["tt.divisibility", 16]] for n in case.divisible}
    source = ASTSource(kernel, signature, constexprs=dict(case.constants), attrs=attributes)
    options = {
        "num_warps": case.num_warps,
        "num_stages": case.num_stages,
        "enable_fp_fusion": case.enable_fp_fusion,
    }
    return triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)


def resource_usage(cubin: bytes, folder: Path) -> dict[str, int]:
    """REG, STACK, SHARED, LOCAL of the first function in a cubin, from cuobjdump --dump-resource-usage."""
    path = folder / "kernel.cubin"
    path.write_bytes(cubin)
    out = subprocess.run([_cuobjdump(), "--dump-resource-usage", str(path)], capture_output=True, text=True, check=True)
    return {k: int(v) for k, v in re.findall(r"\b(REG|STACK|SHARED|LOCAL):(\d+)", out.stdout)}


def _cuobjdump() -> str:
    import triton

    bundled = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    found = str(bundled) if bundled.exists() else shutil.which("cuobjdump")
    assert found, "cuobjdump is neither in Triton's package nor on PATH"
    return found


@pytest.mark.parametrize(("spec", "case", "arch"), CASES)
def test_compiles_without_spills(spec: OpSpec, case: AotCase, arch: int, tmp_path: Path) -> None:
    compiled = compile_case(spec, case, arch)
    assert compiled.metadata.shared <= SHARED_MEMORY_LIMIT[arch]
    usage = resource_usage(compiled.asm["cubin"], tmp_path)
    assert usage["REG"] > 0
    spilled = usage.get("LOCAL", 0) + usage.get("STACK", 0)
    assert spilled <= case.max_spills, f"{case.name}: {spilled} bytes of local memory, {usage}"


@pytest.mark.skipif(_library.INTERPRETING, reason="the interpreter replaces what this compiles")
def test_every_room_with_triton_kernels_has_aot_cases() -> None:
    for spec in vf.ops.specs():
        if importlib.util.find_spec(f"{spec.module}.triton") is not None:
            assert list(spec.aot()), f"{spec.name} has triton.py but no AOT case in its spec"
