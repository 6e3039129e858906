"""mbarrier: what is handed over by it, what it counts, and what a kernel that uses it wrongly gets."""

from __future__ import annotations

import numpy as np
import pytest

from gpu_emulator.tests.kernels import kernel, launch

SCHEDULES = pytest.mark.parametrize("schedule", [0, 1, 2, 3])
LIMIT = 20_000  # warp instructions: some of these wait for ever


def error_of(ptx: str, arrays: list[np.ndarray], **options: object) -> str:
    return launch(ptx, arrays, check=False, most_warp_instructions=LIMIT, **options).error


# Warp 0 fills, warp 1 reads: handed over by an mbarrier of 32 arrivals.
def hand_over(initialised: str, arrive: str, wait: str) -> str:
    return kernel(
        f"""
  .shared .align 8 .b64 bar;
  mov.u32 %r2, sm; and.b32 %r3, %r0, 31; shl.b32 %r3, %r3, 2; add.u32 %r1, %r2, %r3;
  mov.u32 %r4, bar;
  setp.eq.u32 %p1, %r0, 0; @%p1 mbarrier.init.shared::cta.b64 [%r4], 32;
  {initialised}
  setp.lt.u32 %p2, %r0, 32; @!%p2 bra READ;
  add.u64 %rd11, %rd1, %rd0; ld.global.f32 %f1, [%rd11]; st.shared.f32 [%r1], %f1;
  {arrive}
  bra END;
READ: {wait}
  ld.shared.f32 %f2, [%r1];
  mul.wide.u32 %rd12, %r3, 1; add.u64 %rd12, %rd12, %rd2; st.global.f32 [%rd12], %f2;
END:""",
        2,
        shared=128,
    )


ARRIVE = "mbarrier.arrive.shared::cta.b64 %rd15, [%r4];"
WAIT = "mbarrier.try_wait.parity.shared::cta.b64 %p3, [%r4], 0; @!%p3 bra READ;"


@SCHEDULES
def test_hands_over(schedule: int) -> None:
    x, y = np.arange(32, dtype=np.float32), np.zeros(32, np.float32)
    launch(hand_over("bar.sync 0;", ARRIVE, WAIT), [x, y], block=(64,), schedule=schedule)
    np.testing.assert_array_equal(y, x)


@SCHEDULES
@pytest.mark.parametrize(
    ("initialised", "arrive", "wait"),
    [
        ("", ARRIVE, WAIT),
        ("bar.sync 0;", ARRIVE.replace("arrive", "arrive.relaxed.cta"), WAIT),
        ("bar.sync 0;", ARRIVE, ""),
        ("bar.sync 0;", ARRIVE, WAIT.replace(", 0;", ", 1;")),
        ("bar.sync 0;", ARRIVE + ARRIVE.replace("[%r4]", "[%r4], 2"), WAIT),
    ],
    ids=["no barrier after init", "relaxed arrivals", "no wait", "the other parity", "too many arrivals"],
)
def test_wrong_uses(initialised: str, arrive: str, wait: str, schedule: int) -> None:
    x, y = np.arange(32, dtype=np.float32), np.zeros(32, np.float32)
    assert error_of(hand_over(initialised, arrive, wait), [x, y], block=(64,), schedule=schedule)


def test_arrivals_that_never_come() -> None:
    x, y = np.arange(32, dtype=np.float32), np.zeros(32, np.float32)
    few = "setp.lt.u32 %p4, %r0, 31; @%p4 " + ARRIVE
    assert "endless" in error_of(hand_over("bar.sync 0;", few, WAIT), [x, y], block=(64,))


def test_waits_for_copies() -> None:
    def body(arrive: str) -> str:
        return kernel(
            f"""
  .shared .align 8 .b64 bar;
  mov.u32 %r2, sm; shl.b32 %r3, %r0, 4; add.u32 %r1, %r2, %r3; mov.u32 %r4, bar;
  setp.eq.u32 %p1, %r0, 0; @%p1 mbarrier.init.shared.b64 [%r4], 32; bar.sync 0;
  mul.wide.u32 %rd11, %r0, 16; add.u64 %rd11, %rd11, %rd1; cp.async.cg.shared.global [%r1], [%rd11], 16;
  {arrive}
W: mbarrier.test_wait.parity.shared.b64 %p3, [%r4], 0; @!%p3 bra W;
  xor.b32 %r1, %r1, 16; ld.shared.f32 %f2, [%r1]; add.u64 %rd12, %rd2, %rd0; st.global.f32 [%rd12], %f2;""",
            2,
            shared=512,
        )

    x, y = np.arange(128, dtype=np.float32), np.zeros(32, np.float32)
    launch(body("cp.async.mbarrier.arrive.noinc.shared.b64 [%r4];"), [x, y])
    np.testing.assert_array_equal(y, x[::4].reshape(-1, 2)[:, ::-1].ravel())
    assert "race" in error_of(body("mbarrier.arrive.shared.b64 _, [%r4];"), [x, y])


def test_counts_bytes_and_phases() -> None:
    body = """
  .shared .align 8 .b64 bar; mov.u32 %r4, bar; mbarrier.init.shared.b64 [%r4], 2;
  mbarrier.arrive.expect_tx.shared.b64 %rd10, [%r4], 48; mbarrier.pending_count.b64 %r5, %rd10;
  mbarrier.arrive.shared.b64 %rd11, [%r4]; mbarrier.pending_count.b64 %r6, %rd11;
  mbarrier.test_wait.shared.b64 %p1, [%r4], %rd10; selp.u32 %r7, 1, 0, %p1;
  mbarrier.complete_tx.relaxed.cta.shared.b64 [%r4], 48;
  mbarrier.test_wait.shared.b64 %p1, [%r4], %rd10; selp.u32 %r8, 1, 0, %p1;
  mbarrier.test_wait.parity.shared.b64 %p1, [%r4], 1; selp.u32 %r9, 1, 0, %p1;
  mbarrier.arrive_drop.shared.b64 %rd12, [%r4]; mbarrier.arrive.shared.b64 %rd13, [%r4];
  mbarrier.test_wait.shared.b64 %p1, [%r4], %rd13; selp.u32 %r10, 1, 0, %p1;
  mbarrier.arrive.shared.b64 %rd14, [%r4]; mbarrier.test_wait.shared.b64 %p1, [%r4], %rd14;
  selp.u32 %r11, 1, 0, %p1;
  st.global.v4.u32 [%rd1], {%r5, %r6, %r7, %r8}; st.global.v2.u32 [%rd1+16], {%r9, %r10};
  st.global.u32 [%rd1+24], %r11;"""
    out = np.zeros(8, np.uint32)
    launch(kernel(body, 1), [out], block=(1,))
    # Missing before each arrival; not done before the bytes; done; the next phase is not; then one arrival less.
    np.testing.assert_array_equal(out[:7], [2, 1, 0, 1, 0, 1, 1])
