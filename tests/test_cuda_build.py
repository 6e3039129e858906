"""What nvcc and ptxas made of the CUDA kernels, read from the built library; needs no GPU."""

from __future__ import annotations

import itertools
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from benchmarks.resources import SHARED_MEMORY_LIMIT, Usage, cuobjdump, library_usage
from vdiff_fast import _library

ROOT = Path(__file__).resolve().parent.parent
# Static shared memory of a kernel; more is asked for at launch, up to SHARED_MEMORY_LIMIT.
STATIC_SHARED_MEMORY_LIMIT = 48 * 1024

needs_nvcc = pytest.mark.skipif(
    shutil.which("nvcc") is None and not _library.CUDA.path.exists(),
    reason="nvcc is not on PATH and no CUDA library was built",
)


@pytest.fixture(scope="module")
def usages() -> list[Usage]:
    assert _library.CUDA.path.exists(), f"nvcc is here, but the CUDA library is not built: {_library.CUDA.reason}"
    return library_usage(_library.CUDA.path)


@needs_nvcc
def test_every_kernel_is_built_for_every_architecture(usages: list[Usage]) -> None:
    asked = json.loads((_library.LIBRARY_DIR / "build.json").read_text())["cuda_archs"]
    archs = {int(re.sub(r"\D", "", arch)) for arch in asked.split(";")}
    built = {(u.kernel, u.arch) for u in usages}
    # A kernel that only newer chips can run says so in its name.
    everywhere = {kernel for kernel, _ in built if "cluster" not in kernel}
    assert everywhere
    assert {(kernel, arch) for kernel in everywhere for arch in archs} <= built


@needs_nvcc
def test_every_room_with_a_cuda_source_has_kernels() -> None:
    text = subprocess.run(
        [cuobjdump(), "--list-elf", str(_library.CUDA.path)], capture_output=True, text=True, check=True
    ).stdout
    rooms = {path.parent.name for path in ROOT.glob("csrc/ops/*/cuda*.cu")}
    assert rooms
    assert text.count(".cubin") >= 2 * len(rooms)


@needs_nvcc
def test_no_kernel_spills(usages: list[Usage]) -> None:
    spilling = [u for u in usages if u.local > 0]
    assert not spilling, spilling


@needs_nvcc
def test_registers_and_shared_memory_are_within_limits(usages: list[Usage]) -> None:
    for usage in usages:
        assert 0 < usage.registers <= 255, usage
        assert usage.shared <= min(STATIC_SHARED_MEMORY_LIMIT, SHARED_MEMORY_LIMIT[usage.arch]), usage


@needs_nvcc
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


@needs_nvcc
@pytest.mark.parametrize("library", ["cpu", "cuda"])
def test_only_the_stable_abi_is_used(library: str) -> None:
    """No at:: or c10:: symbol is wanted from torch, so one build serves every torch from 2.11 on."""
    path = _library.LIBRARY_DIR / f"libvdiff_fast_{library}.so"
    assert path.exists(), f"{path.name} is not built"
    nm = shutil.which("nm")
    assert nm, "nm (binutils) comes with every compiler"
    text = subprocess.run([nm, "-DC", "--undefined-only", str(path)], capture_output=True, text=True, check=True).stdout
    assert "aoti_torch" in text, "the library asks nothing of torch: this is not what was meant to be read"
    wanted = [line for line in text.splitlines() if re.search(r"\b(at|c10)::", line)]
    assert not wanted, wanted
