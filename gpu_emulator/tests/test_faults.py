"""Broken kernels that must be caught, and their right twins that must not be reported."""

from __future__ import annotations

import numpy as np
import pytest

from gpu_emulator.tests.kernels import kernel, launch

SCHEDULES = pytest.mark.parametrize("schedule", [0, 1, 2, 3])


def error_of(ptx: str, arrays: list[np.ndarray], **options: object) -> str:
    return launch(ptx, arrays, check=False, **options).error


# %rd11 = own address in p0, %r1 = own byte in shared memory
PLACES = """
  add.u64 %rd11, %rd1, %rd0; ld.global.f32 %f1, [%rd11];
  shl.b32 %r1, %r0, 2; mov.u32 %r2, sm; add.u32 %r1, %r1, %r2;
"""


def reverse(barrier: str, threads: int = 64) -> str:
    return kernel(
        f"""{PLACES}
  st.shared.f32 [%r1], %f1;
  {barrier}
  sub.u32 %r3, {threads - 1}, %r0; shl.b32 %r3, %r3, 2; add.u32 %r3, %r3, %r2;
  ld.shared.f32 %f2, [%r3];
  add.u64 %rd12, %rd2, %rd0; st.global.f32 [%rd12], %f2;""",
        2,
        shared=4 * threads,
    )


@SCHEDULES
def test_missing_barrier(schedule: int) -> None:
    x, y = np.arange(64, dtype=np.float32), np.zeros(64, np.float32)
    assert "race" in error_of(reverse("", 64), [x, y], block=(64,), schedule=schedule, memcheck=False)
    launch(reverse("bar.sync 0;", 64), [x, y], block=(64,), schedule=schedule)
    np.testing.assert_array_equal(y, x[::-1])


def test_lanes_of_one_warp_need_a_warp_barrier() -> None:
    x, y = np.arange(32, dtype=np.float32), np.zeros(32, np.float32)
    assert "race" in error_of(reverse("", 32), [x, y])
    shuffle = "shfl.sync.idx.b32 %r20, %r0, 0, 31, -1;"
    assert "race" in error_of(reverse(shuffle, 32), [x, y])
    launch(reverse("bar.warp.sync -1;", 32), [x, y])
    np.testing.assert_array_equal(y, x[::-1])


def test_a_warp_barrier_does_not_order_other_warps() -> None:
    x, y = np.arange(64, dtype=np.float32), np.zeros(64, np.float32)
    assert "race" in error_of(reverse("bar.warp.sync -1;", 64), [x, y], block=(64,), memcheck=False)


def test_write_after_read_needs_a_barrier_too() -> None:
    def body(second: str) -> str:
        return kernel(
            f"""{PLACES}
  st.shared.f32 [%r1], %f1; bar.sync 0;
  xor.b32 %r3, %r1, 128; ld.shared.f32 %f2, [%r3];
  {second}
  st.shared.f32 [%r1], %f2;
  add.u64 %rd12, %rd2, %rd0; st.global.f32 [%rd12], %f2;""",
            2, shared=256,
        )  # fmt: skip

    x, y = np.arange(64, dtype=np.float32), np.zeros(64, np.float32)
    assert "race" in error_of(body(""), [x, y], block=(64,))
    launch(body("bar.sync 0;"), [x, y], block=(64,))


def test_out_of_bounds() -> None:
    ptx = kernel(f"{PLACES} add.u64 %rd12, %rd2, %rd0; st.global.f32 [%rd12], %f1;", 2, shared=128)
    x, y = np.zeros(32, np.float32), np.zeros(31, np.float32)
    error = error_of(ptx, [x, y])
    for part in ("lane 31", "outside every allowed range", "st.global.f32"):
        assert part in error, error
    assert "thread (31, 0, 0)" in error
    assert not error_of(ptx, [x, np.zeros(32, np.float32)])
    error = error_of(kernel("ld.global.f32 %f1, [%rd1+-4];", 1), [x])
    assert "4 bytes before p0" in error, error


def test_misaligned_vector() -> None:
    x = np.zeros(64, np.float32)
    ptx = kernel("add.u64 %rd2, %rd1, 4; ld.global.v2.f32 {%f1, %f2}, [%rd2];", 1)
    aligned = x[(8 - x.ctypes.data % 8) // 4 % 2 :]
    assert "not aligned" in error_of(ptx, [aligned])


def test_shared_memory_bounds_and_first_use() -> None:
    x = np.zeros(32, np.float32)
    assert "offset 128 of shared memory" in error_of(
        kernel("mov.u32 %r1, sm; st.shared.f32 [%r1+128], 0f00000000;", 1, shared=128), [x]
    )
    assert "never written" in error_of(kernel("mov.u32 %r1, sm; ld.shared.f32 %f1, [%r1];", 1, shared=128), [x])
    dynamic = ".extern .shared .align 16 .b8 dyn[];\n"
    ptx = kernel("mov.u32 %r1, dyn; st.shared.f32 [%r1+60], 0f00000000;", 1, shared=16, before=dynamic)
    assert not error_of(
        kernel(
            (
                "mov.u32 %r1, dyn; add.u32 %r1, %r1, 60; @%p1 bra X; setp.eq.u32 %p2, %r0, 0; "
                "@%p2 st.shared.f32 [%r1], 0f00000000; X:"
            ),
            1,
            before=dynamic,
        ),
        [x],
        dynamic=64,
    )
    assert "shared memory" in error_of(ptx, [x], dynamic=60)


def test_local_memory_bounds() -> None:
    body = ".local .align 4 .b8 depot[16]; mov.u64 %rd2, depot; cvta.local.u64 %rd3, %rd2; st.{} [%rd{}+{}], %r0;"
    x = np.zeros(1, np.float32)
    assert not error_of(kernel(body.format("u32", 3, 12), 1), [x])
    assert "local memory" in error_of(kernel(body.format("u32", 3, 16), 1), [x])
    assert "local memory" in error_of(kernel(body.format("local.u32", 2, -4), 1), [x])


@SCHEDULES
def test_cp_async_needs_its_wait(schedule: int) -> None:
    def body(wait: str, barrier: str, other: int) -> str:
        return kernel(
            f"""
  shl.b32 %r1, %r0, 4; mov.u32 %r2, sm; add.u32 %r1, %r1, %r2;
  mul.wide.u32 %rd3, %r0, 16; add.u64 %rd3, %rd3, %rd1;
  cp.async.cg.shared.global [%r1], [%rd3], 16;
  cp.async.commit_group;
  {wait} {barrier}
  xor.b32 %r1, %r1, {other};
  ld.shared.f32 %f1, [%r1];
  add.u64 %rd4, %rd2, %rd0; st.global.f32 [%rd4], %f1;""",
            2, shared=64 * 16,
        )  # fmt: skip

    x, y = np.arange(256, dtype=np.float32), np.zeros(64, np.float32)
    run = {"block": (64,), "schedule": schedule}
    assert "race" in error_of(body("", "bar.sync 0;", 0), [x, y], **run)
    assert "race" in error_of(body("cp.async.wait_group 1;", "", 0), [x, y], **run)
    assert "race" in error_of(body("cp.async.wait_group 0;", "", 16), [x, y], **run)
    launch(body("cp.async.wait_group 0;", "", 0), [x, y], **run)
    np.testing.assert_array_equal(y, x[::4])
    launch(body("cp.async.wait_all;", "bar.sync 0;", 16), [x, y], **run)
    np.testing.assert_array_equal(y, x[::4].reshape(-1, 2)[:, ::-1].ravel())


def test_diverged_barrier() -> None:
    x = np.zeros(32, np.float32)
    body = """
  setp.lt.u32 %p1, %r0, 7;
  @%p1 bra A;
  bar.sync 0;
  bra B;
A: bar.sync 0;
B: mov.u32 %r1, 0;"""
    error = error_of(kernel(body, 1), [x])
    for part in ("diverged", "bar.sync 0"):
        assert part in error, error
    # Lanes that come late are waited for; lanes that have left are not.
    assert not error_of(
        kernel("setp.lt.u32 %p1, %r0, 7; @%p1 bra A; B: bar.sync 0; bra C; A: mov.u32 %r2, 1; bra B; C:", 1), [x]
    )
    assert not error_of(kernel("setp.lt.u32 %p1, %r0, 7; @%p1 ret; bar.sync 0;", 1), [x])


def test_deadlock_names_who_waits() -> None:
    body = "setp.lt.u32 %p1, %r0, 32; @%p1 bra A; bar.sync 1, 96; bra B; A: bar.sync 2, 64; B:"
    error = error_of(kernel(body, 1), [np.zeros(1, np.float32)], block=(64,))
    for part in ("deadlock", "barrier 1", "barrier 2"):
        assert part in error, error


def test_endless_loop() -> None:
    error = error_of(kernel("L: bra L;", 1), [np.zeros(1, np.float32)], most_warp_instructions=10_000)
    assert "endless" in error


def test_trap() -> None:
    assert "trap" in error_of(kernel("setp.eq.u32 %p1, %r0, 5; @%p1 trap;", 1), [np.zeros(1, np.float32)])


# Block 0 writes, then tells; the others wait to be told, then read.
def flag(write: str, tell: str, wait: str) -> str:
    return kernel(
        f"""
  mov.u32 %r1, %ctaid.x; setp.ne.u32 %p1, %r1, 0; @%p1 bra READ;
  {write} [%rd1], 0f40e00000;
  {tell}
  bra END;
READ:
  {wait}
  setp.eq.u32 %p2, %r2, 0; @%p2 bra READ;
  ld.global.f32 %f1, [%rd1];
  mul.wide.u32 %rd4, %r1, 4; add.u64 %rd4, %rd4, %rd3; st.global.f32 [%rd4], %f1;
END:""",
        3,
    )


@SCHEDULES
@pytest.mark.parametrize(
    ("tell", "wait", "right"),
    [
        ("st.release.gpu.global.u32 [%rd2], 1;", "ld.acquire.gpu.global.u32 %r2, [%rd2];", True),
        ("red.release.gpu.global.add.u32 [%rd2], 1;", "ld.acquire.gpu.global.u32 %r2, [%rd2];", True),
        ("fence.acq_rel.gpu; st.relaxed.gpu.u32 [%rd2], 1;", "ld.relaxed.gpu.u32 %r2,[%rd2]; fence.acq_rel.gpu;", True),
        ("membar.gl; st.volatile.global.u32 [%rd2], 1;", "ld.volatile.global.u32 %r2, [%rd2]; membar.gl;", True),
        ("membar.gl; atom.global.add.u32 %r9, [%rd2], 1;", "atom.global.or.b32 %r2, [%rd2], 0; membar.gl;", True),
        ("st.relaxed.gpu.global.u32 [%rd2], 1;", "ld.acquire.gpu.global.u32 %r2, [%rd2];", False),
        ("st.release.gpu.global.u32 [%rd2], 1;", "ld.relaxed.gpu.global.u32 %r2, [%rd2];", False),
        ("st.release.cta.global.u32 [%rd2], 1;", "ld.acquire.gpu.global.u32 %r2, [%rd2];", False),
        ("st.global.u32 [%rd2], 1;", "ld.global.u32 %r2, [%rd2];", False),
    ],
)  # fmt: skip
def test_release_and_acquire_between_blocks(tell: str, wait: str, right: bool, schedule: int) -> None:
    arrays = [np.zeros(1, np.float32), np.zeros(1, np.uint32), np.zeros(3, np.float32)]
    error = error_of(flag("st.global.f32", tell, wait), arrays, grid=(3,), block=(1,), schedule=schedule)
    if right:
        assert not error, error
        assert list(arrays[2][1:]) == [7, 7]
    else:
        assert "race" in error, error


def test_blocks_that_write_one_place() -> None:
    x = np.zeros(4, np.float32)
    assert "race" in error_of(kernel("st.global.f32 [%rd1], 0f3f800000;", 1), [x], grid=(2,), block=(1,))
    ptx = kernel("atom.global.add.f32 %f1, [%rd1], 0f3f800000;", 1)
    x[0] = 0
    launch(ptx, [x], grid=(5,), block=(64,))
    assert x[0] == 320
    # An atomic sum and a plain read of it by another block are not in order.
    mixed = (
        "mov.u32 %r1, %ctaid.x; setp.eq.u32 %p1, %r1, 0; "
        "@%p1 red.global.add.f32 [%rd1], 0f3f800000; @!%p1 ld.global.f32 %f1, [%rd1];"
    )
    assert "race" in error_of(kernel(mixed, 1), [x], grid=(2,), block=(1,))


def test_lanes_that_write_one_place_in_one_instruction() -> None:
    x = np.zeros(1, np.uint32)
    assert "race" in error_of(kernel("st.global.u32 [%rd1], %r0;", 1), [x])
    assert not error_of(kernel("st.global.u32 [%rd1], 5;", 1), [x])


def test_halves_of_a_word_are_apart() -> None:
    x = np.zeros(64, np.uint16)
    launch(kernel("mad.wide.u32 %rd2, %r0, 2, %rd1; mov.u16 %rs1, 3; st.global.u16 [%rd2], %rs1;", 1), [x], block=(64,))
    ptx = kernel(
        ("shr.u32 %r1, %r0, 1; mad.wide.u32 %rd2, %r1, 2, %rd1; cvt.u16.u32 %rs1, %r0; st.global.u16 [%rd2], %rs1;"), 1
    )
    assert "race" in error_of(ptx, [x], block=(64,))


# The last block to arrive sums what all have written.
@SCHEDULES
@pytest.mark.parametrize("fence", ["fence.acq_rel.gpu;", ""])
def test_last_block_sums(fence: str, schedule: int) -> None:
    body = f"""
  mov.u32 %r1, %ctaid.x; mul.wide.u32 %rd4, %r1, 4; add.u64 %rd5, %rd1, %rd4;
  cvt.rn.f32.u32 %f1, %r1; st.global.f32 [%rd5], %f1;
  {fence}
  atom.global.add.u32 %r2, [%rd2], 1;
  {fence}
  mov.u32 %r3, %nctaid.x; sub.u32 %r3, %r3, 1; setp.ne.u32 %p1, %r2, %r3; @%p1 ret;
  mov.f32 %f2, 0f00000000; mov.u32 %r4, 0;
L: ld.global.f32 %f3, [%rd1]; add.f32 %f2, %f2, %f3; add.u64 %rd1, %rd1, 4;
  add.u32 %r4, %r4, 1; setp.le.u32 %p2, %r4, %r3; @%p2 bra L;
  st.global.f32 [%rd3], %f2;"""
    arrays = [np.zeros(20, np.float32), np.zeros(1, np.uint32), np.zeros(1, np.float32)]
    error = error_of(kernel(body, 3), arrays, grid=(20,), block=(1,), schedule=schedule)
    if fence:
        assert not error, error
        assert arrays[2][0] == 190
    else:
        assert "race" in error


@SCHEDULES
def test_cluster_shared_memory(schedule: int) -> None:
    def body(first: str, last: str) -> str:
        return kernel(
            f"""{PLACES}
  mov.u32 %r10, %ctaid.x; shl.b32 %r11, %r10, 5; add.u32 %r11, %r11, %r0; cvt.rn.f32.u32 %f1, %r11;
  st.shared.f32 [%r1], %f1;
  {first}
  mov.u32 %r12, %cluster_ctarank; xor.b32 %r12, %r12, 1;
  mapa.shared::cluster.u32 %r13, %r1, %r12;
  ld.shared::cluster.f32 %f2, [%r13];
  mul.wide.u32 %rd12, %r11, 4; add.u64 %rd12, %rd12, %rd2; st.global.f32 [%rd12], %f2;
  {last}""",
            2, shared=128,
        )  # fmt: skip

    sync = "barrier.cluster.arrive.aligned; barrier.cluster.wait.aligned;"
    x, y = np.zeros(32, np.float32), np.zeros(128, np.float32)
    run = {"grid": (4,), "cluster": (2,), "schedule": schedule}
    launch(body(sync, sync), [x, y], **run)
    np.testing.assert_array_equal(y, np.arange(128).reshape(2, 2, 32)[:, ::-1].ravel())
    assert error_of(body("", sync), [x, y], **run)
    relaxed = "barrier.cluster.arrive.relaxed.aligned; barrier.cluster.wait.aligned;"
    assert "race" in error_of(body(relaxed, sync), [x, y], **run)
    errors = [error_of(body(sync, ""), [x, y], grid=(4,), cluster=(2,), schedule=s) for s in range(20)]
    assert any("has exited" in e for e in errors)


def test_shuffle_from_a_lane_that_does_not_take_part() -> None:
    body = "setp.lt.u32 %p1, %r0, 16; @%p1 shfl.sync.idx.b32 %r1, %r0, 20, 31, 0xffff;"
    assert "does not take part" in error_of(kernel(body, 1), [np.zeros(1, np.float32)])
    body = "setp.lt.u32 %p1, %r0, 16; @%p1 shfl.sync.idx.b32 %r1, %r0, 3, 31, -1;"
    assert "do not execute" in error_of(kernel(body, 1), [np.zeros(1, np.float32)])


def test_unknown_instructions_are_named() -> None:
    error = error_of(kernel("frobnicate.u32 %r1, %r0;", 1), [np.zeros(1, np.float32)])
    for part in ("frobnicate.u32", "line"):
        assert part in error, error
    error = error_of(kernel("add.sat.rn.u32 %r1, %r0, 1;", 1), [np.zeros(1, np.float32)])
    assert "implemented" in error
