"""Triton's launching code, as it is, on CPU tensors: arguments of every kind, exact ends, a race, reports."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
triton = pytest.importorskip("triton")

import triton.language as tl  # noqa: E402

from gpu_emulator import ptx as emulator  # noqa: E402
from gpu_emulator import triton as emulated  # noqa: E402


@triton.jit
def scaled_sum(x_ptr, y_ptr, bias_ptr, out_ptr, n, scale, shift, REPEAT: tl.constexpr, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = i < n
    value = tl.load(x_ptr + i, mask=mask).to(tl.float32) * scale + shift
    if y_ptr is not None:
        value += tl.load(y_ptr + i, mask=mask).to(tl.float32)
    for _ in range(REPEAT):
        value += tl.load(bias_ptr)
    tl.store(out_ptr + i, value, mask=mask)


@triton.jit
def row_sums(x_ptr, out_ptr, columns, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    x = tl.load(x_ptr + tl.program_id(0) * columns + i, mask=i < columns, other=0.0)
    tl.store(out_ptr + tl.program_id(0), tl.sum(x, 0))


@triton.jit
def matrix_product(a_ptr, b_ptr, out_ptr, N: tl.constexpr, K: tl.constexpr):
    m, n, k = tl.arange(0, 64), tl.arange(0, N), tl.arange(0, K)
    a = tl.load(a_ptr + m[:, None] * K + k[None, :])
    b = tl.load(b_ptr + k[:, None] * N + n[None, :])
    tl.store(out_ptr + m[:, None] * N + n[None, :], tl.dot(a, b))


@triton.jit
def everyone_writes(out_ptr):
    tl.store(out_ptr, tl.program_id(0))


@triton.jit
def sums_of_squares(x_ptr, out_ptr, ROUNDED: tl.constexpr):
    row, column = tl.arange(0, 4), tl.arange(0, 32)
    x = tl.load(x_ptr + row[:, None] * 32 + column[None, :])
    square = tl.fma(x, x, 0.0) if ROUNDED else x * x
    tl.store(out_ptr + row, tl.sum(square, 1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("arch", [80, 90])
@pytest.mark.parametrize("with_y", [False, True])
def test_arguments_of_every_kind(dtype: torch.dtype, arch: int, with_y: bool) -> None:
    x, y = torch.randn(1000).to(dtype), torch.randn(1000).to(dtype) if with_y else None
    out = torch.empty(1000)
    with emulated.active(arch) as log:
        scaled_sum[(4,)](x, y, torch.tensor([0.5]), out, 1000, 2.0, 2**40, REPEAT=3, BLOCK=256, num_warps=2)
    expected = x.float() * 2 + float(2**40) + (0 if y is None else y.float()) + 1.5
    torch.testing.assert_close(out, expected)
    (launch,) = log
    assert (launch.name, launch.grid, launch.num_warps) == ("scaled_sum", (4, 1, 1), 2)
    assert launch.report.unique_store_bytes == 4000


def test_the_end_of_a_storage_is_exact() -> None:
    out = torch.empty(999)
    with emulated.active() as log, pytest.raises(emulator.EmulatorError, match="outside every allowed range"):
        scaled_sum[(4,)](torch.randn(1000), None, torch.zeros(1), out, 1000, 1.0, 0, REPEAT=1, BLOCK=256)
    assert "scaled_sum" in log.launches[0].report.error
    assert "outside" in log.launches[0].report.error


@pytest.mark.parametrize("schedule", [0, 1, 2])
@pytest.mark.parametrize("columns", [5, 700])
def test_a_reduction_over_warps(columns: int, schedule: int) -> None:
    x, out = torch.randn(6, columns), torch.empty(6)
    with emulated.active(schedule=schedule) as log:
        row_sums[(6,)](x, out, columns, BLOCK=triton.next_power_of_2(columns), num_warps=4)
    torch.testing.assert_close(out, x.sum(1))
    assert log.launches[0].report.shared_requests > 0 or columns < 32


@pytest.mark.parametrize("arch", [80, 90])
@pytest.mark.parametrize(("n", "k"), [(64, 64), (32, 16), (128, 32)])
def test_a_matrix_product(arch: int, n: int, k: int) -> None:
    """On sm_90 by wgmma, whose descriptors and swizzles are the compiler's."""
    a, b, out = torch.randn(64, k).bfloat16(), torch.randn(k, n).bfloat16(), torch.empty(64, n)
    with emulated.active(arch, keep_ptx=True) as log:
        matrix_product[(1,)](a, b, out, n, k, num_warps=4)
    torch.testing.assert_close(out, a.float() @ b.float(), rtol=1e-5, atol=1e-4)
    assert ("wgmma" if arch == 90 else "mma.sync") in log.launches[0].ptx
    assert log.launches[0].report.tensor_ops > 0


def test_programs_that_write_one_place() -> None:
    out = torch.zeros(1, dtype=torch.int32)
    with emulated.active(), pytest.raises(emulator.EmulatorError, match="race"):
        everyone_writes[(3,)](out)


@pytest.mark.parametrize("schedule", [0, 1])
def test_lanes_that_round_one_sum_differently(schedule: int) -> None:
    """fma(x, x, shuffle(x * x)) is not the same in both lanes of a pair, which then write one place."""
    x, out = torch.randn(4, 32, generator=torch.Generator().manual_seed(0)), torch.empty(4)
    with emulated.active(schedule=schedule):
        sums_of_squares[(1,)](x, out, True, num_warps=4, enable_fp_fusion=True)
        torch.testing.assert_close(out, (x * x).sum(1))
        with pytest.raises(emulator.EmulatorError, match="write different values to one place in one instruction"):
            sums_of_squares[(1,)](x, out, False, num_warps=4, enable_fp_fusion=True)
        sums_of_squares[(1,)](x, out, False, num_warps=4, enable_fp_fusion=False)
