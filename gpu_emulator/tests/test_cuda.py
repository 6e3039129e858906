"""Kernels with one fault each, which must be found, their right twins, and launches that a driver refuses."""

from __future__ import annotations

import ctypes
import shutil
from pathlib import Path

import pytest

from gpu_emulator import build, cuda

pytestmark = pytest.mark.skipif(shutil.which("nvcc") is None, reason="needs nvcc (not a GPU)")

# name -> the kind of the fault; "any" where it is both a race and a fault of memory
FAULTS = {
    "read_past_the_end": "memory",
    "write_past_the_end": "memory",
    "use_after_free": "memory",
    "missing_syncthreads": "any",
    "missing_cp_async_wait": "any",
    "missing_cluster_sync_before_the_exit": "any",
    "missing_cluster_sync_before_the_read": "any",
    "counter_not_reset": "race",
    "relaxed_counter": "race",
    "missing_grid_sync": "race",
    "misaligned_vector": "memory",
    "past_the_dynamic_shared_memory": "memory",
    "uninitialised_shared_memory": "memory",
    "blocks_write_the_same_element": "race",
    "endless_wait": "memory",
}
REFUSED = (
    "grid_of_no_blocks",
    "too_many_threads",
    "more_threads_than_the_bounds",
    "too_many_blocks_in_y",
    "shared_memory_without_the_attribute",
    "more_shared_memory_than_there_is",
    "grid_not_made_of_clusters",
    "cluster_of_sixteen",
    "cooperative_grid_too_large",
)
LIMIT = 200_000  # warp instructions of a launch


@pytest.fixture(scope="session")
def cases() -> ctypes.CDLL:
    cuda.runtime()
    library, source = build.folder() / "libfaults.so", Path(__file__).with_name("faults.cu")
    with build.locked(build.folder()):
        if not build.is_newer(library, [source]):
            cuda.compile_library([source], library)
    return ctypes.CDLL(str(library))


def _run(cases: ctypes.CDLL, name: str, right: bool, **options: object) -> tuple[int, cuda.Log]:
    with cuda.active(most_warp_instructions=LIMIT, **options) as log:
        status = getattr(cases, f"case_{name}")(right)
    return status, log


@pytest.mark.parametrize("schedule", [0, 1, 2])
@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_found_and_its_right_twin_is_not(cases: ctypes.CDLL, name: str, schedule: int) -> None:
    _, wrong = _run(cases, name, False, schedule=schedule)
    problems = wrong.problems()
    assert problems, f"{name} was not found"
    assert FAULTS[name] in ("any", problems[0].kind), problems[0].error
    status, right = _run(cases, name, True, schedule=schedule)
    assert status == 0
    assert right.launches
    assert not right.problems(), right.problems()[0].error


@pytest.mark.parametrize("name", REFUSED)
def test_what_a_driver_refuses_is_refused(cases: ctypes.CDLL, name: str) -> None:
    status, log = _run(cases, name, False)
    assert status != 0
    assert all(launch.kind == "launch" for launch in log.launches)
    status, log = _run(cases, name, True)
    assert status == 0
    assert not log.problems(), (log.problems()[0].refusal, log.problems()[0].error)


def test_a_fault_stays_until_the_context_ends(cases: ctypes.CDLL) -> None:
    with cuda.active(sticky=True):
        assert cases.case_read_past_the_end(False) == 700
        assert cases.case_read_past_the_end(True) == 700
    assert _run(cases, "read_past_the_end", True)[0] == 0


def test_clusters_need_a_device_that_has_them(cases: ctypes.CDLL) -> None:
    assert _run(cases, "cluster_of_sixteen", True, device="a100")[0] != 0
