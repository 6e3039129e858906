"""Branches, loops, calls, lanes of a warp, special registers, memory of every kind."""

from __future__ import annotations

import numpy as np
import pytest

from gpu_emulator.tests.kernels import HEADER, kernel, launch

SCHEDULES = pytest.mark.parametrize("schedule", [0, 1, 2])
STORE = "add.u64 %rd20, %rd1, %rd0; st.global.u32 [%rd20], %r9;"


def lanes(body: str, count: int = 32, **options: object) -> np.ndarray:
    out = np.zeros(count, np.uint32)
    launch(kernel(body + STORE, 1), [out], block=(count,), **options)
    return out


def test_divergent_loop_of_different_lengths() -> None:
    body = (
        "mov.u32 %r9, 0; mov.u32 %r1, 0; L: add.u32 %r9, %r9, %r1; add.u32 %r1, %r1, 1; "
        "setp.le.u32 %p1, %r1, %r0; @%p1 bra L;"
    )
    np.testing.assert_array_equal(lanes(body), [n * (n + 1) // 2 for n in range(32)])


def test_nested_divergence_and_out_of_line_code() -> None:
    body = """
  mov.u32 %r9, 0; setp.lt.u32 %p1, %r0, 16; and.b32 %r1, %r0, 1; setp.eq.u32 %p2, %r1, 0;
  @%p1 bra FAR;
BACK: @%p2 bra EVEN;
  add.u32 %r9, %r9, 10; bra JOIN;
EVEN: add.u32 %r9, %r9, 20;
JOIN: shfl.sync.bfly.b32 %r9, %r9, 1, 31, -1;
  bra END;
FAR: add.u32 %r9, %r9, 100; bra BACK;
END:"""
    np.testing.assert_array_equal(lanes(body), [(100 if i < 16 else 0) + (10 if i % 2 == 0 else 20) for i in range(32)])


def test_lanes_that_wait_for_other_lanes_of_their_warp() -> None:
    """A lane spins until a lane behind it in the code has stored: forward progress of every lane."""
    body = """
  .shared .align 4 .u32 flag;
  setp.eq.u32 %p1, %r0, 0; @%p1 st.volatile.shared.u32 [flag], 0;
  bar.warp.sync -1;
  setp.ne.u32 %p1, %r0, 31; @!%p1 bra SET;
SPIN: ld.volatile.shared.u32 %r1, [flag]; setp.eq.u32 %p2, %r1, 0; @%p2 bra SPIN;
  bra END;
SET: st.volatile.shared.u32 [flag], 7; mov.u32 %r1, 7;
END: mov.u32 %r9, %r1;"""
    np.testing.assert_array_equal(lanes(body), 7)


def test_indexed_branch() -> None:
    body = """
  and.b32 %r1, %r0, 3;
  targets: .branchtargets A, B, C, D;
  brx.idx %r1, targets;
A: mov.u32 %r9, 5; bra END;
B: mov.u32 %r9, 6; bra END;
C: mov.u32 %r9, 7; bra END;
D: mov.u32 %r9, 8;
END:"""
    np.testing.assert_array_equal(lanes(body), np.arange(32) % 4 + 5)


def test_calls_with_parameters_in_memory() -> None:
    function = """
.func (.param .b32 result) twice(.param .b32 x) {
  .reg .b32 %a<3>;
  ld.param.b32 %a1, [x]; add.u32 %a2, %a1, %a1; st.param.b32 [result+0], %a2; ret;
}
.func (.param .align 8 .b8 result[8]) pair(.param .align 8 .b8 x[8]) {
  .reg .b32 %a<4>; .reg .pred %q<2>;
  ld.param.v2.b32 {%a1, %a2}, [x];
  setp.gt.u32 %q1, %a1, 40; @%q1 bra SKIP;
  { .param .b32 in; .param .b32 out; st.param.b32 [in+0], %a1; call.uni (out), twice, (in); ld.param.b32 %a1, [out+0]; }
SKIP: st.param.v2.b32 [result], {%a2, %a1}; ret;
}
"""
    body = """
  { .param .align 8 .b8 in[8]; .param .align 8 .b8 out[8];
    shl.b32 %r1, %r0, 2; st.param.b32 [in+0], %r1; st.param.b32 [in+4], %r0;
    call (out), pair, (in);
    ld.param.b32 %r2, [out+0]; ld.param.b32 %r3, [out+4]; }
  shl.b32 %r3, %r3, 8; or.b32 %r9, %r2, %r3;"""
    out = np.zeros(32, np.uint32)
    launch(kernel(body + STORE, 1, before=function), [out])
    np.testing.assert_array_equal(out, [i | (8 * i if 4 * i <= 40 else 4 * i) << 8 for i in range(32)])


def test_labels_of_blocks_are_their_own() -> None:
    block = "{ .reg .u32 n; mov.u32 n, 0; L: add.u32 n, n, 1; setp.lt.u32 %p1, n, 3; @%p1 bra L; add.u32 %r9, %r9, n; }"
    np.testing.assert_array_equal(lanes("mov.u32 %r9, 0;" + block + block), 6)


def test_shuffles() -> None:
    value = "mov.u32 %r1, %r0;"
    i = np.arange(32)
    np.testing.assert_array_equal(
        lanes(value + "shfl.sync.down.b32 %r9, %r1, 3, 31, -1;"), np.where(i + 3 < 32, i + 3, i)
    )
    np.testing.assert_array_equal(lanes(value + "shfl.sync.up.b32 %r9, %r1, 3, 0, -1;"), np.where(i >= 3, i - 3, i))
    np.testing.assert_array_equal(lanes(value + "shfl.sync.bfly.b32 %r9, %r1, 5, 31, -1;"), i ^ 5)
    np.testing.assert_array_equal(lanes(value + "shfl.sync.idx.b32 %r9, %r1, 2, 0x181f, -1;"), i // 8 * 8 + 2)
    np.testing.assert_array_equal(
        lanes(value + "shfl.sync.down.b32 %r9|%p1, %r1, 3, 0x181f, -1; selp.u32 %r9, 1, 0, %p1;"), i % 8 + 3 < 8
    )


def test_votes_and_matches() -> None:
    ballot = "setp.gt.u32 %p1, %r0, 20;"
    mask = sum(1 << i for i in range(21, 32))
    np.testing.assert_array_equal(lanes(ballot + "vote.sync.ballot.b32 %r9, %p1, -1;"), mask)
    np.testing.assert_array_equal(lanes(ballot + "vote.sync.any.pred %p2, %p1, -1; selp.u32 %r9, 1, 0, %p2;"), 1)
    np.testing.assert_array_equal(lanes(ballot + "vote.sync.all.pred %p2, !%p1, -1; selp.u32 %r9, 1, 0, %p2;"), 0)
    body = "shr.u32 %r1, %r0, 3; match.any.sync.b32 %r9, %r1, -1;"
    np.testing.assert_array_equal(lanes(body), [0xFF << (i // 8 * 8) for i in range(32)])
    np.testing.assert_array_equal(lanes("redux.sync.add.u32 %r9, %r0, -1;"), 496)
    np.testing.assert_array_equal(lanes("sub.s32 %r1, %r0, 9; redux.sync.min.s32 %r9, %r1, -1;").view(np.int32), -9)
    np.testing.assert_array_equal(
        lanes(
            "elect.sync %r1|%p1, 0xfffffff0; selp.u32 %r9, 1, 0, %p1;"[0:0]
            + "elect.sync %r1|%p1, -1; selp.u32 %r9, 1, 0, %p1;"
        ),
        [1] + [0] * 31,
    )
    part = "mov.u32 %r9, 0; setp.lt.u32 %p1, %r0, 8; @%p1 vote.sync.ballot.b32 %r9, %p1, 0xff;"
    np.testing.assert_array_equal(lanes(part), [255] * 8 + [0] * 24)
    np.testing.assert_array_equal(
        lanes("mov.u32 %r9, 0; setp.lt.u32 %p1, %r0, 8; @!%p1 bra E; activemask.b32 %r9; E:"), [255] * 8 + [0] * 24
    )


def test_special_registers() -> None:
    body = """
  mov.u32 %r1, %tid.x; mov.u32 %r2, %tid.y; mov.u32 %r3, %ctaid.x; mov.u32 %r4, %ctaid.y;
  mov.u32 %r5, %ntid.x; mov.u32 %r6, %ntid.y; mov.u32 %r7, %nctaid.x; mov.u32 %r8, %laneid; mov.u32 %r10, %warpid;
  mad.lo.u32 %r11, %r2, %r5, %r1;
  mad.lo.u32 %r12, %r4, %r7, %r3; mul.lo.u32 %r13, %r5, %r6; mad.lo.u32 %r12, %r12, %r13, %r11;
  shl.b32 %r10, %r10, 8; or.b32 %r9, %r8, %r10; shl.b32 %r12, %r12, 16; or.b32 %r9, %r9, %r12;
  shr.u32 %r12, %r12, 16; mul.wide.u32 %rd0, %r12, 4;"""
    out = np.zeros(10 * 5 * 3 * 2, np.uint32)
    launch(kernel(body + STORE, 1), [out], grid=(3, 2), block=(10, 5))
    i = np.arange(len(out))
    np.testing.assert_array_equal(out, i << 16 | (i % 50 // 32) << 8 | i % 50 % 32)


@SCHEDULES
def test_named_barriers_hand_over(schedule: int) -> None:
    """Warp 0 produces, warp 1 consumes: bar.arrive and bar.sync with counts."""
    body = """
  .shared .align 4 .b8 sm[128];
  shl.b32 %r1, %r0, 2; and.b32 %r1, %r1, 127; mov.u32 %r2, sm; add.u32 %r1, %r1, %r2;
  mov.u32 %r9, 0; mov.u32 %r3, 0; setp.lt.u32 %p1, %r0, 32; @!%p1 bra CONSUME;
PRODUCE: add.u32 %r4, %r0, %r3; st.shared.u32 [%r1], %r4; bar.arrive 1, 64; bar.sync 2, 64;
  add.u32 %r3, %r3, 1; setp.lt.u32 %p2, %r3, 5; @%p2 bra PRODUCE;
  bra END;
CONSUME: bar.sync 1, 64; ld.shared.u32 %r4, [%r1]; add.u32 %r9, %r9, %r4; bar.arrive 2, 64;
  add.u32 %r3, %r3, 1; setp.lt.u32 %p2, %r3, 5; @%p2 bra CONSUME;
END:"""
    out = lanes(body, 64, schedule=schedule)
    np.testing.assert_array_equal(out, [0] * 32 + [5 * i + 10 for i in range(32)])


def test_barrier_reduction() -> None:
    body = (
        "setp.lt.u32 %p1, %r0, 40; bar.red.popc.u32 %r9, 0, %p1; bar.red.or.pred %p2, 0, %p1; "
        "bar.red.and.pred %p3, 0, %p1; selp.u32 %r1, 100, 0, %p2; selp.u32 %r2, 1000, 0, %p3; "
        "add.u32 %r9, %r9, %r1; add.u32 %r9, %r9, %r2;"
    )
    np.testing.assert_array_equal(lanes(body, 64), 140)


@SCHEDULES
def test_blocks_that_wait_for_one_another(schedule: int) -> None:
    """A barrier of the whole grid, by a counter in memory, as cooperative launches have it."""
    body = """
  mov.u32 %r1, %ctaid.x; mov.u32 %r2, %nctaid.x; mul.wide.u32 %rd4, %r1, 4; add.u64 %rd5, %rd1, %rd4;
  st.global.u32 [%rd5], %r1;
  red.release.gpu.global.add.u32 [%rd2], 1;
W: ld.acquire.gpu.global.u32 %r3, [%rd2]; setp.lt.u32 %p1, %r3, %r2; @%p1 bra W;
  add.u32 %r4, %r1, 1; rem.u32 %r4, %r4, %r2; mul.wide.u32 %rd6, %r4, 4; add.u64 %rd6, %rd6, %rd1;
  ld.global.u32 %r5, [%rd6]; add.u64 %rd7, %rd3, %rd4; st.global.u32 [%rd7], %r5;"""
    arrays = [np.zeros(50, np.uint32), np.zeros(1, np.uint32), np.zeros(50, np.uint32)]
    launch(kernel(body, 3), arrays, grid=(50,), block=(1,), resident_blocks=-1, schedule=schedule)
    np.testing.assert_array_equal(arrays[2], (np.arange(50) + 1) % 50)
    arrays[1][:] = 0
    report = launch(
        kernel(body, 3), arrays, grid=(50,), block=(1,), resident_blocks=4, check=False, most_warp_instructions=100_000
    )
    assert "endless" in report.error


def test_vector_loads_and_stores_of_every_width() -> None:
    data = np.arange(32 * 16, dtype=np.uint8)
    for kind, vector in [("u8", "v4"), ("u16", "v4"), ("b32", "v4"), ("b64", "v2"), ("b32", "v2"), ("u16", "v2")]:
        count, bits = int(vector[1]), int(kind[1:])
        width = count * bits // 8
        prefix = {8: "rs", 16: "rs", 32: "r", 64: "rd"}[bits]
        registers = ", ".join(f"%{prefix}{30 + k}" for k in range(count))
        body = (
            f"mad.wide.u32 %rd10, %r0, {width}, %rd1; mad.wide.u32 %rd11, %r0, {width}, %rd2; "
            f"ld.global.{vector}.{kind} {{{registers}}}, [%rd10]; "
            f"st.global.{vector}.{kind} [%rd11], {{{registers}}};"
        )
        out = np.zeros_like(data)
        launch(kernel(body, 2), [data, out])
        np.testing.assert_array_equal(out[: 32 * width], data[: 32 * width])


def test_narrow_loads_are_extended() -> None:
    data = np.array([0x80, 0x7F, 0xFF, 1], np.uint8)
    out = np.zeros(4, np.int32)
    body = (
        "ld.global.s8 %r1, [%rd1]; st.global.u32 [%rd2], %r1; ld.global.u8 %r1, [%rd1]; "
        "st.global.u32 [%rd2+4], %r1; ld.global.s16 %r1, [%rd1+2]; st.global.u32 [%rd2+8], %r1; "
        "ld.global.s8 %rs1, [%rd1+2]; cvt.s32.s16 %r1, %rs1; st.global.u32 [%rd2+12], %r1;"
    )
    launch(kernel(body, 2), [data, out], block=(1,))
    np.testing.assert_array_equal(out, [-128, 128, 0x1FF, -1])


def test_packed_moves() -> None:
    body = """mov.u32 %r1, 0x11223344; mov.b32 {%rs1, %rs2}, %r1; mov.b32 %r2, {%rs2, %rs1};
  mov.b64 %rd5, {%r1, %r2}; mov.b64 {_, %r3}, %rd5; mov.b64 {%rs3, %rs4, %rs5, %rs6}, %rd5; cvt.u32.u16 %r4, %rs5;
  sub.u32 %r5, %r3, %r2; add.u32 %r9, %r4, %r5;"""
    np.testing.assert_array_equal(lanes(body), 0x1122)


def test_generic_addresses() -> None:
    body = """
  .shared .align 8 .b8 sm[256]; .local .align 8 .b8 depot[8];
  mov.u64 %rd5, sm; add.u64 %rd5, %rd5, %rd0; cvta.shared.u64 %rd6, %rd5; st.u32 [%rd6], %r0;
  mov.u64 %rd7, depot; cvta.local.u64 %rd8, %rd7; st.u32 [%rd8+4], %r0;
  isspacep.shared %p1, %rd6; isspacep.local %p2, %rd8; isspacep.global %p3, %rd1; isspacep.shared %p4, %rd1;
  selp.u32 %r1, 1, 0, %p1; selp.u32 %r2, 2, 0, %p2; selp.u32 %r3, 4, 0, %p3; selp.u32 %r4, 8, 0, %p4;
  or.b32 %r1, %r1, %r2; or.b32 %r1, %r1, %r3; or.b32 %r1, %r1, %r4;
  ld.shared.u32 %r5, [%rd5]; ld.local.u32 %r6, [%rd7+4]; add.u32 %r5, %r5, %r6; shl.b32 %r5, %r5, 8;
  cvta.to.shared.u64 %rd9, %rd6; sub.u64 %rd9, %rd9, %rd5; cvt.u32.u64 %r7, %rd9;
  or.b32 %r9, %r1, %r5; or.b32 %r9, %r9, %r7;"""
    np.testing.assert_array_equal(lanes(body), [7 | 2 * i << 8 for i in range(32)])


def test_module_variables() -> None:
    before = (
        ".const .align 4 .u32 table[4] = {10, 20, 30, 40}; "
        ".global .align 8 .u64 place = generic(table) + 8; "
        ".global .align 4 .f32 number = 0f3FC00000;\n"
    )
    body = (
        "and.b32 %r1, %r0, 3; mul.wide.u32 %rd3, %r1, 4; mov.u64 %rd4, table; "
        "add.u64 %rd4, %rd4, %rd3; ld.const.u32 %r9, [%rd4]; mov.u64 %rd5, place; "
        "ld.global.u64 %rd6, [%rd5]; ld.u32 %r2, [%rd6]; add.u32 %r9, %r9, %r2; "
        "ld.global.f32 %f1, [number]; cvt.rzi.u32.f32 %r3, %f1; add.u32 %r9, %r9, %r3;"
    )
    out = np.zeros(32, np.uint32)
    launch(kernel(body + STORE, 1, before=before), [out])
    np.testing.assert_array_equal(out, np.arange(32) % 4 * 10 + 10 + 30 + 1)


def test_parameters_of_every_kind() -> None:
    from gpu_emulator import ptx as emulator

    ptx = f"""{HEADER}
.visible .entry k(.param .u8 a, .param .align 8 .b8 s[24], .param .f32 f, .param .u64 .ptr .global .align 4 out)
.maxntid 64, 1, 1 .minnctapersm 2 {{
  .reg .b32 %r<9>; .reg .b64 %rd<5>; .reg .b16 %rs<3>; .reg .f32 %f<3>;
  ld.param.u8 %rs1, [a]; ld.param.v2.u32 {{%r1, %r2}}, [s+8]; mov.b64 %rd1, s; ld.param.u32 %r3, [%rd1+16];
  ld.param.f32 %f1, [f]; ld.param.u64 %rd2, [out];
  cvt.u32.u16 %r4, %rs1; st.global.v4.b32 [%rd2], {{%r4, %r1, %r2, %r3}}; st.global.f32 [%rd2+16], %f1; ret;
}}"""
    module = emulator.Module(ptx)
    assert module.layout("k") == [(0, 1), (8, 24), (32, 4), (40, 8)]
    assert module.info("k").most_threads == 64
    out = np.zeros(8, np.uint32)
    block = bytearray(48)
    block[0] = 200
    block[8:32] = np.arange(6, dtype=np.uint32).tobytes()
    block[32:36] = np.float32(1.5).tobytes()
    block[40:48] = out.ctypes.data.to_bytes(8, "little")
    emulator.allow(out.ctypes.data, out.nbytes, "out")
    module.launch("k", (1,), (1,), bytes(block))
    emulator.forbid(out.ctypes.data)
    np.testing.assert_array_equal(out[:5], [200, 2, 3, 4, np.float32(1.5).view(np.uint32)])


def test_atomics() -> None:
    out = np.zeros(8, np.uint32)
    out[1] = 2**32 - 1
    body = """
  atom.global.add.u32 %r1, [%rd1], 1; atom.global.min.u32 %r2, [%rd1+4], %r0; red.global.max.s32 [%rd1+8], %r0;
  shl.b32 %r3, 1, %r0; red.global.or.b32 [%rd1+12], %r3; atom.global.inc.u32 %r4, [%rd1+16], 9;
  atom.global.cas.b32 %r5, [%rd1+20], 0, 77; atom.global.exch.b32 %r6, [%rd1+24], 5;
  red.global.add.f32 [%rd1+28], 0f3f000000;"""
    launch(kernel(body, 1), [out], block=(64,))
    assert list(out[:3]) == [64, 0, 63]
    assert list(out[3:7]) == [2**32 - 1, 64 % 10, 77, 5]
    assert out[7:].view(np.float32)[0] == 32
    halves = np.zeros(2, np.float16)
    launch(kernel("mov.b32 %r1, 0x3c003800; red.global.add.noftz.f16x2 [%rd1], %r1;", 1), [halves], block=(8,))
    assert list(halves) == [4, 8]


def test_atomics_return_what_was_there() -> None:
    out, counter = np.zeros(64, np.uint32), np.zeros(1, np.uint32)
    body = "atom.global.add.u32 %r9, [%rd2], 3; add.u64 %rd20, %rd1, %rd0; st.global.u32 [%rd20], %r9;"
    launch(kernel(body, 2), [out, counter], block=(64,))
    np.testing.assert_array_equal(np.sort(out), np.arange(64) * 3)


def test_counters_of_global_memory() -> None:
    x, y = np.zeros(4096, np.float32), np.zeros(4096, np.float32)
    offset = x.ctypes.data % 128 // 4
    x, y = x[(32 - offset) % 32 :], y[(32 - y.ctypes.data % 128 // 4) % 32 :]
    copy = (
        "add.u64 %rd11, %rd1, %rd0; ld.global.f32 %f1, [%rd11]; add.u64 %rd12, %rd2, %rd0; st.global.f32 [%rd12], %f1;"
    )
    r = launch(kernel(copy, 2), [x, y], block=(128,))
    assert (r.global_load_requests, r.global_load_sectors, r.global_store_sectors) == (4, 16, 16)
    assert (r.global_load_bytes_asked, r.unique_load_bytes, r.dram_store_bytes) == (512, 512, 512)
    strided = (
        "mul.wide.u32 %rd3, %r0, 64; add.u64 %rd11, %rd1, %rd3; ld.global.f32 %f1, [%rd11]; ld.global.f32 %f2, [%rd11];"
    )
    r = launch(kernel(strided, 2), [x, y], block=(32,))
    assert (r.global_load_requests, r.global_load_sectors, r.unique_load_bytes, r.dram_load_bytes) == (
        2,
        64,
        1024,
        1024,
    )
    r = launch(kernel(copy + copy.replace("%rd1,", "%rd2,"), 2), [x, y], block=(32,))
    assert r.unique_load_bytes == 128  # what was stored before needs no DRAM


def test_counters_of_shared_memory() -> None:
    def waves(stride: int, vector: str, bytes_: int) -> tuple[int, int]:
        registers = {"": "%r5", "v2.": "{%r5, %r6}", "v4.": "{%r5, %r6, %r7, %r8}"}[vector]
        body = (
            f".shared .align 16 .b8 sm[16384]; mul.lo.u32 %r1, %r0, {stride}; mov.u32 %r2, sm; "
            f"add.u32 %r1, %r1, %r2; ld.shared.{vector}u32 {registers}, [%r1];"
        )
        r = launch(kernel(body, 1), [np.zeros(1, np.float32)], memcheck=False)
        return r.shared_requests, r.shared_wavefronts

    assert waves(4, "", 4) == (1, 1)
    assert waves(0, "", 4) == (1, 1)
    assert waves(8, "", 4) == (1, 2)
    assert waves(128, "", 4) == (1, 32)
    assert waves(132, "", 4) == (1, 1)
    assert waves(16, "v4.", 16) == (4, 4)
    assert waves(8, "v2.", 8) == (2, 2)
    assert waves(256, "v4.", 16) == (4, 32)


def test_counters_of_instructions() -> None:
    body = (
        "fma.rn.f32 %f1, %f2, %f3, %f4; add.f32 %f1, %f1, %f1; add.u32 %r1, %r0, 1; "
        "ex2.approx.f32 %f1, %f1; mul.wide.u32 %rd5, %r0, %r1; cvt.rn.f32.u32 %f2, %r1; "
        "setp.lt.u32 %p1, %r0, 5; @%p1 bra L; mov.u32 %r2, 0; L:"
    )
    r = launch(kernel(body, 1), [np.zeros(1, np.float32)])
    assert (r.fma_pipe, r.sfu_pipe, r.conversions, r.imad_wide) == (2, 1, 1, 2)
    assert r.divergent_branches == 1
