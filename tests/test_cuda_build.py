"""What nvcc and ptxas made of the CUDA kernels, read from the compiled library; needs no GPU."""

from __future__ import annotations

import itertools
import re
import subprocess
from pathlib import Path

import pytest
import torch

from benchmarks.binaries import Usage, cuobjdump, library_usage
from benchmarks.resources import SHARED_MEMORY_LIMIT
from tools.make_wheel import foreign_symbols
from vdiff_fast import _build, _library

ROOT = Path(__file__).resolve().parent.parent
# Static shared memory of a kernel; more is asked for at launch, up to SHARED_MEMORY_LIMIT.
STATIC_SHARED_MEMORY_LIMIT = 48 * 1024


@pytest.fixture(scope="module")
def usages(cuda_library: Path) -> list[Usage]:
    return library_usage(cuda_library)


def test_every_kernel_is_built_for_every_architecture(usages: list[Usage]) -> None:
    archs = {int(re.sub(r"\D", "", arch)) for arch in _build.DEFAULT_CUDA_ARCHS.split(";")}
    built = {(u.kernel, u.arch) for u in usages}
    # A kernel that only newer chips can run says so in its name.
    everywhere = {kernel for kernel, _ in built if "cluster" not in kernel}
    assert everywhere
    assert {(kernel, arch) for kernel in everywhere for arch in archs} <= built


def test_every_room_with_a_cuda_source_has_kernels(cuda_library: Path) -> None:
    text = subprocess.run(
        [cuobjdump(), "--list-elf", str(cuda_library)], capture_output=True, text=True, check=True
    ).stdout
    rooms = {path.parent.name for path in ROOT.glob("csrc/ops/*/cuda*.cu")}
    assert rooms
    assert text.count(".cubin") >= 2 * len(rooms)


def test_no_kernel_spills(usages: list[Usage]) -> None:
    spilling = [u for u in usages if u.local > 0]
    assert not spilling, spilling


def test_registers_and_shared_memory_are_within_limits(usages: list[Usage]) -> None:
    for usage in usages:
        assert 0 < usage.registers <= 255, usage
        assert usage.shared <= min(STATIC_SHARED_MEMORY_LIMIT, SHARED_MEMORY_LIMIT[usage.arch]), usage


def test_two_blocks_of_every_grid_fit_a_multiprocessors_registers(usages: list[Usage]) -> None:
    """GroupNorm's plan starts as many at once; a block that found no place would stop all others."""
    grids = [usage for usage in usages if usage.kernel.startswith("grid_kernel")]
    kinds = itertools.product(("float", "__half", "__nv_bfloat16"), ("false", "true"), ("false", "true"))
    wanted = {f"grid_kernel<{dtype}, {last}, {backward}>" for dtype, last, backward in kinds}
    for arch in {usage.arch for usage in usages}:
        assert {usage.kernel for usage in grids if usage.arch == arch} == wanted
    registers, threads = 65536, 256
    for usage in grids:
        assert 2 * threads * usage.registers <= registers, usage


def test_every_op_makes_its_tensors_device_current() -> None:
    registered = [
        line for path in ROOT.glob("csrc/ops/*/cuda*.cu") for line in path.read_text().splitlines() if "m.impl(" in line
    ]
    assert registered
    assert all("TORCH_BOX(&vdiff::OnDevice<&" in line for line in registered), registered


def test_the_cuda_library_uses_only_the_stable_abi(cuda_library: Path) -> None:
    assert foreign_symbols(cuda_library) == []


@pytest.mark.skipif(_library.CPU.reason is not None, reason=str(_library.CPU.reason))
def test_the_cpu_library_uses_only_the_stable_abi() -> None:
    assert foreign_symbols(_library.CPU.path) == []


def test_a_library_of_torchs_classes_is_found_out() -> None:
    """Torch's own bindings are made of them."""
    assert foreign_symbols(Path(torch.__file__).parent / "lib" / "libtorch_python.so")
