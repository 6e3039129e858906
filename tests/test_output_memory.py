"""Memory of large CPU outputs: reused, bounded, filled where torch is deterministic, and given back."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor

import vdiff_fast as vf
from vdiff_fast import _library
from vdiff_fast.bench.measure import peak_bytes

pytestmark = pytest.mark.skipif(_library.CPU.reason is not None, reason=f"needs CPU kernels: {_library.CPU.reason}")

MB = 2**20


@pytest.fixture(autouse=True)
def nothing_idle() -> None:
    _library.release_memory()


def output(megabytes: int, **options: object) -> Tensor:
    """An output of this size, of a kernel that writes zeros."""
    x = torch.zeros(megabytes, 4, MB // 16)
    return vf.ops.group_norm_silu(x, 4, **options)  # type: ignore[arg-type]


def test_an_output_takes_the_memory_of_a_dead_one() -> None:
    first = output(8)
    address = first.data_ptr()
    assert address % (2 * MB) == 0
    view = first[1:]
    del first
    assert _library.idle_memory() == 0, "a view still uses it"
    del view
    assert _library.idle_memory() == 8 * MB
    second, third = output(7), output(8)
    assert second.data_ptr() == address
    assert third.data_ptr() != address
    assert _library.idle_memory() == 0


def test_a_block_much_too_large_stays() -> None:
    output(16)
    small = output(8)
    assert small.numel()
    assert _library.idle_memory() == 16 * MB


def test_outputs_below_large_pages_are_kept_in_granules() -> None:
    x = torch.zeros(3, 4, MB // 16 + 1)
    address = vf.ops.group_norm_silu(x, 4).data_ptr()
    assert _library.idle_memory() == 3 * MB + 2**16
    assert vf.ops.group_norm_silu(x, 4).data_ptr() == address


def test_small_outputs_are_torchs_own() -> None:
    vf.ops.group_norm_silu(torch.zeros(1, 4, MB // 16 - 1), 4)
    assert _library.idle_memory() == 0


def test_layouts_keep_their_strides() -> None:
    x = torch.randn(2, 8, 4, 64, 512).to(memory_format=torch.channels_last_3d)
    y = vf.ops.group_norm_silu(x, 4)
    assert x.nbytes >= 4 * MB
    assert y.stride() == x.stride()
    torch.testing.assert_close(y, torch.nn.functional.silu(torch.nn.functional.group_norm(x.contiguous(), 4)))


def test_release_gives_everything_back() -> None:
    before = _resident()
    outputs = [output(64) for _ in range(2)]
    del outputs
    assert _library.idle_memory() == 128 * MB
    assert _resident() - before > 100 * MB
    _library.release_memory()
    assert _library.idle_memory() == 0
    assert _resident() - before < 28 * MB


def _resident() -> int:
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.parametrize(("limit", "idle"), [("0", 0), ("20", 16), ("64", 48)])
def test_bound(limit: str, idle: int) -> None:
    """Six outputs of 8 MB die; at most `limit` MB stay, in whole blocks."""
    script = (
        "import torch, vdiff_fast as vf; from vdiff_fast import _library\n"
        "ys = [vf.ops.group_norm_silu(torch.zeros(2, 4, 2**18), 4) for _ in range(6)]\n"
        "del ys; print(_library.idle_memory())"
    )
    environment = {**os.environ, "VDIFF_FAST_KEEP_MB": limit}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert int(done.stdout) == idle * MB


def test_memory_is_filled_where_torch_is_deterministic() -> None:
    """The contract tests find elements that a kernel left out by this fill."""
    assert torch.are_deterministic_algorithms_enabled()
    assert "aten::fill_" in _operators()
    torch.use_deterministic_algorithms(False)
    assert "aten::fill_" not in _operators()


def _operators() -> set[str]:
    """What torch runs to make an output in memory that was used before."""
    x = torch.zeros(8, 4, MB // 16)
    mean = torch.zeros(8, 4)
    dy = torch.ones_like(x)
    torch.ops.vdiff_fast.group_norm_silu_backward(dy, x, None, 4, None, None, mean, mean, *[None] * 3, False, True)
    assert _library.idle_memory() > 0
    with torch.profiler.profile() as profile:
        torch.ops.vdiff_fast.group_norm_silu_backward(dy, x, None, 4, None, None, mean, mean, *[None] * 3, False, True)
    return {event.name for event in profile.events() if "fill" in event.name}


def test_threads_share_it() -> None:
    def work(seed: int) -> bool:
        x = torch.full((2, 4, 2**18), float(seed))
        return all(bool((vf.ops.group_norm_silu(x, 4, bias=torch.ones(4) * seed) > 0).all()) for _ in range(10))

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(work, range(1, 5)))
    assert _library.idle_memory() <= 1024 * MB


def test_measured_memory_counts_large_outputs() -> None:
    x = torch.zeros(8, 4, MB // 16)
    assert peak_bytes(lambda: vf.ops.group_norm_silu(x, 4), x.device) >= x.nbytes
    assert output(8).data_ptr() % (2 * MB) == 0
    assert _library.idle_memory() == 8 * MB
