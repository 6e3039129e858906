"""Matrix instructions against torch: fragments by the manual's tables, products in every type."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from gpu_emulator.tests.kernels import kernel, launch

DTYPES = {"f16": torch.float16, "bf16": torch.bfloat16, "tf32": torch.float32}


def matrix(rows: int, columns: int, kind: str, seed: int) -> torch.Tensor:
    x = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)).to(DTYPES[kind])
    if kind == "tf32":
        x = (x.view(torch.int32) & ~0x1FFF).view(torch.float32)
    return x


def words(x: torch.Tensor) -> np.ndarray:
    return (
        x.contiguous().view(torch.int32).numpy() if x.element_size() == 4 else x.contiguous().view(torch.int16).numpy()
    )


def a_fragment(a: torch.Tensor, kind: str) -> np.ndarray:
    """[lane, register] words of A, 16 x k."""
    packed, k = (1, a.shape[1]) if kind == "tf32" else (2, a.shape[1])
    step = 4 * packed
    out = []
    for lane in range(32):
        registers = []
        for word in range(2 * k // step):
            row, column = lane // 4 + word % 2 * 8, lane % 4 * packed + word // 2 * step
            registers.append(words(a[row, column : column + packed].clone()).view(np.uint32)[0])
        out.append(registers)
    return np.array(out, np.uint32)


def b_fragment(b: torch.Tensor, kind: str) -> np.ndarray:
    packed, k = (1, b.shape[0]) if kind == "tf32" else (2, b.shape[0])
    step = 4 * packed
    out = []
    for lane in range(32):
        registers = []
        for word in range(k // step):
            row, column = lane % 4 * packed + word * step, lane // 4
            registers.append(words(b[row : row + packed, column].clone()).view(np.uint32)[0])
        out.append(registers)
    return np.array(out, np.uint32)


def c_fragment(c: np.ndarray) -> np.ndarray:
    return np.array(
        [[c[lane // 4 + e // 2 * 8, lane % 4 * 2 + e % 2] for e in range(4)] for lane in range(32)], np.float32
    )


@pytest.mark.parametrize(("kind", "k"), [("f16", 16), ("f16", 8), ("bf16", 16), ("bf16", 8), ("tf32", 8), ("tf32", 4)])
def test_mma_sync(kind: str, k: int) -> None:
    a, b, c = (
        matrix(16, k, kind, 1),
        matrix(k, 8, kind, 2),
        torch.randn(16, 8, generator=torch.Generator().manual_seed(3)),
    )
    fa, fb, fc = a_fragment(a, kind), b_fragment(b, kind), c_fragment(c.numpy())
    out = np.zeros((32, 4), np.float32)
    na, nb = fa.shape[1], fb.shape[1]
    load = [f"mad.wide.u32 %rd{5 + i}, %r0, {4 * n}, %rd{1 + i};" for i, n in enumerate((na, nb, 4, 4))]
    load += [f"ld.global.b32 %r{10 + i}, [%rd5+{4 * i}];" for i in range(na)]
    load += [f"ld.global.b32 %r{20 + i}, [%rd6+{4 * i}];" for i in range(nb)]
    load += [f"ld.global.f32 %f{1 + i}, [%rd7+{4 * i}];" for i in range(4)]
    ra, rb = ", ".join(f"%r{10 + i}" for i in range(na)), ", ".join(f"%r{20 + i}" for i in range(nb))
    sums = "{%f1, %f2, %f3, %f4}"
    mma = f"mma.sync.aligned.m16n8k{k}.row.col.f32.{kind}.{kind}.f32 {sums}, {{{ra}}}, {{{rb}}}, {sums};"
    store = "st.global.v4.f32 [%rd8], {%f1, %f2, %f3, %f4};"
    launch(kernel("\n".join(load) + mma + store, 4), [fa, fb, fc, out])
    expected = (a.double() @ b.double() + c.double()).float().numpy()
    np.testing.assert_array_equal(out, c_fragment(expected))


@pytest.mark.parametrize("count", [1, 2, 4])
@pytest.mark.parametrize("trans", ["", ".trans"])
def test_ldmatrix_and_stmatrix(count: int, trans: str) -> None:
    tiles = torch.arange(count * 64, dtype=torch.int16).view(count, 8, 8)
    flat, out, copy = tiles.numpy().ravel().copy(), np.zeros((32, count), np.uint32), np.zeros(count * 64, np.int16)
    r = "{" + ", ".join(f"%r{10 + i}" for i in range(count)) + "}"
    per_lane = count * 4
    body = (
        f"""
  .shared .align 16 .b8 sm[1024];
  mov.u32 %r1, sm; mad.lo.u32 %r2, %r0, {per_lane}, %r1; mad.wide.u32 %rd5, %r0, {per_lane}, %rd1;
"""
        + "\n".join(f"ld.global.b32 %r20, [%rd5+{4 * i}]; st.shared.b32 [%r2+{4 * i}], %r20;" for i in range(count))
        + f"""
  bar.sync 0;
  and.b32 %r3, %r0, {8 * count - 1}; mad.lo.u32 %r4, %r3, 16, %r1;
  ldmatrix.sync.aligned.m8n8.x{count}{trans}.shared.b16 {r}, [%r4];
  bar.sync 0;
  mad.wide.u32 %rd6, %r0, {4 * count}, %rd2;
"""
        + "\n".join(f"st.global.b32 [%rd6+{4 * i}], %r{10 + i};" for i in range(count))
        + f"""
  stmatrix.sync.aligned.m8n8.x{count}{trans}.shared.b16 [%r4], {r};
  bar.sync 0;
  mad.wide.u32 %rd7, %r0, {per_lane}, %rd3;
"""
        + "\n".join(f"ld.shared.b32 %r20, [%r2+{4 * i}]; st.global.b32 [%rd7+{4 * i}], %r20;" for i in range(count))
    )
    launch(kernel(body, 3), [flat, out, copy])
    for lane in range(32):
        for i in range(count):
            tile = tiles[i].T if trans else tiles[i]
            pair = tile[lane // 4, lane % 4 * 2 : lane % 4 * 2 + 2]
            assert out[lane, i] == int(pair[0]) | int(pair[1]) << 16
    np.testing.assert_array_equal(copy, flat)


def test_movmatrix() -> None:
    tile = torch.arange(64, dtype=torch.int16).view(8, 8)
    fragment = np.array(
        [int(tile[i // 4, i % 4 * 2]) | int(tile[i // 4, i % 4 * 2 + 1]) << 16 for i in range(32)], np.uint32
    )
    out = np.zeros(32, np.uint32)
    body = (
        "add.u64 %rd5, %rd1, %rd0; ld.global.b32 %r1, [%rd5]; "
        "movmatrix.sync.aligned.m8n8.trans.b16 %r2, %r1; add.u64 %rd6, %rd2, %rd0; "
        "st.global.b32 [%rd6], %r2;"
    )
    launch(kernel(body, 2), [fragment, out])
    wanted = [int(tile.T[i // 4, i % 4 * 2]) | int(tile.T[i // 4, i % 4 * 2 + 1]) << 16 for i in range(32)]
    np.testing.assert_array_equal(out, wanted)


# --- wgmma. Shared memory is filled through a swizzle of our own, written from the manual's figures. ---


def swizzled(byte: int, swizzle: int) -> int:
    bits = {0: 0, 128: 7, 64: 3, 32: 1}[swizzle]
    return byte ^ ((byte >> 7 & bits) << 4)


def k_major(x: torch.Tensor, swizzle: int) -> tuple[np.ndarray, int, int]:
    """x [rows, k] with k along memory; bytes, leading and stride offsets. k fills just one instruction."""
    data = words(x).view(np.uint8).reshape(x.shape[0], -1)  # 32 bytes a row
    rows = x.shape[0]
    if swizzle == 0:  # 8 x 16-byte cores, one after the other along rows, then along k
        out = np.zeros(rows * 32, np.uint8)
        for r in range(rows):
            for piece in range(2):
                at = piece * rows * 16 + r * 16
                out[at : at + 16] = data[r, piece * 16 : piece * 16 + 16]
        return out, rows * 16, 128
    out = np.zeros(rows * swizzle, np.uint8)
    for r in range(rows):
        for piece in range(2):
            at = swizzled(r * swizzle + piece * 16, swizzle)
            out[at : at + 16] = data[r, piece * 16 : piece * 16 + 16]
    return out, 16, 8 * swizzle


def mn_major(x: torch.Tensor, swizzle: int) -> tuple[np.ndarray, int, int]:
    """x [rows, k] with the rows' dimension along memory."""
    data = words(x.T.contiguous()).view(np.uint8).reshape(x.shape[1], -1)  # [k][row bytes]
    k, pieces = x.shape[1], x.shape[0] * 2 // 16
    if swizzle == 0:  # 8 x 16-byte cores: along k within a core, then the rows' dimension, then k
        out = np.zeros(data.size, np.uint8)
        for at_k in range(k):
            for piece in range(pieces):
                at = piece * 128 + at_k // 8 * pieces * 128 + at_k % 8 * 16
                out[at : at + 16] = data[at_k, piece * 16 : piece * 16 + 16]
        return out, pieces * 128, 128
    wide = swizzle // 16
    out = np.zeros(max(pieces // wide, 1) * k * swizzle, np.uint8)
    for at_k in range(k):
        for piece in range(pieces):
            at = swizzled(piece // wide * k * swizzle + at_k * swizzle + piece % wide * 16, swizzle)
            out[at : at + 16] = data[at_k, piece * 16 : piece * 16 + 16]
    return out, k * swizzle, 8 * swizzle


def descriptor(offset: int, leading: int, stride: int, swizzle: int) -> str:
    """PTX that leaves the descriptor of the matrix at sm + offset in %rd15."""
    mode = {0: 0, 128: 1, 64: 2, 32: 3}[swizzle]
    high = (leading >> 4) << 16 | (stride >> 4) << 32 | mode << 62
    return f"mov.u64 %rd15, sm; add.u64 %rd15, %rd15, {offset}; shr.u64 %rd15, %rd15, 4; or.b64 %rd15, %rd15, {high};"


def wgmma_kernel(
    kind: str,
    n: int,
    k: int,
    a_desc: str,
    b_desc: str,
    trans_a: int,
    trans_b: int,
    fence: str,
    wait: str,
    sizes: tuple[int, int],
    a_registers: bool,
) -> str:
    na, nb = sizes
    sums = ", ".join(f"%f{i}" for i in range(n // 2))
    trans = "" if kind == "tf32" else f", {trans_b}" if a_registers else f", {trans_a}, {trans_b}"
    a_operand = "{%r50, %r51, %r52, %r53}" if a_registers else "%rd16"
    load_a = (
        "mad.wide.u32 %rd5, %r0, 16, %rd1; ld.global.v4.b32 {%r50, %r51, %r52, %r53}, [%rd5];"
        if a_registers
        else a_desc + "mov.u64 %rd16, %rd15;"
    )
    return kernel(
        f"""
  .shared .align 1024 .b8 sm[{32768}];
  mov.u32 %r1, sm;
  mov.u32 %r2, %r0;
FILL: mul.wide.u32 %rd5, %r2, 4; add.u64 %rd6, %rd2, %rd5; ld.global.b32 %r3, [%rd6];
  shl.b32 %r4, %r2, 2; add.u32 %r4, %r4, %r1;
  st.shared.b32 [%r4], %r3; add.u32 %r2, %r2, 128; setp.lt.u32 %p1, %r2, {(na + nb) // 4}; @%p1 bra FILL;
  {fence}
  bar.sync 0;
  {load_a}
  {b_desc}
""" + "\n".join(f"mov.f32 %f{i}, 0f3F800000;" for i in range(n // 2)) + f"""
  wgmma.fence.sync.aligned;
  setp.ne.u32 %p2, %r1, 0;
  wgmma.mma_async.sync.aligned.m64n{n}k{k}.f32.{kind}.{kind} {{{sums}}}, {a_operand}, %rd15, %p2, 1, 1{trans};
  wgmma.commit_group.sync.aligned;
  {wait}
  mad.wide.u32 %rd7, %r0, {2 * n}, %rd3;
""" + "\n".join(f"st.global.f32 [%rd7+{4 * i}], %f{i};" for i in range(n // 2)),
        3,
    )  # fmt: skip


def run_wgmma(
    kind: str, n: int, swizzle: int, a_registers: bool, trans_a: bool, trans_b: bool, **change: str
) -> tuple[np.ndarray, np.ndarray]:
    k = 8 if kind == "tf32" else 16
    a, b = matrix(64, k, kind, 1), matrix(n, k, kind, 2)
    a_bytes, a_leading, a_stride = (mn_major if trans_a else k_major)(a, swizzle)
    b_bytes, b_leading, b_stride = (mn_major if trans_b else k_major)(b, swizzle)
    pad = -len(a_bytes) % 1024
    memory = np.concatenate([a_bytes, np.zeros(pad, np.uint8), b_bytes])
    registers = (
        np.concatenate([a_fragment(a[16 * w : 16 * w + 16], kind) for w in range(4)])
        if a_registers
        else np.zeros((128, 4), np.uint32)
    )
    out = np.zeros((128, n // 2), np.float32)
    text = wgmma_kernel(
        kind, n, k, descriptor(0, a_leading, a_stride, swizzle),
        descriptor(len(a_bytes) + pad, b_leading, b_stride, swizzle),
        int(trans_a), int(trans_b), change.get("fence", "fence.proxy.async.shared::cta;"),
        change.get("wait", "wgmma.wait_group.sync.aligned 0;"), (len(a_bytes) + pad, len(b_bytes)), a_registers,
    )  # fmt: skip
    launch(text, [registers, memory, out], block=(128,))
    full = (a.double() @ b.double().T + 1).float().numpy()
    wanted = np.zeros_like(out)
    for thread in range(128):
        warp, lane = divmod(thread, 32)
        for e in range(n // 2):
            wanted[thread, e] = full[16 * warp + lane // 4 + e // 2 % 2 * 8, e // 4 * 8 + lane % 4 * 2 + e % 2]
    return out, wanted


@pytest.mark.parametrize("swizzle", [0, 32, 64, 128])
@pytest.mark.parametrize(("kind", "trans_b"), [("bf16", False), ("bf16", True), ("f16", False), ("tf32", False)])
@pytest.mark.parametrize("a_registers", [False, True])
def test_wgmma(kind: str, trans_b: bool, swizzle: int, a_registers: bool) -> None:
    np.testing.assert_array_equal(*run_wgmma(kind, 64, swizzle, a_registers, False, trans_b))


@pytest.mark.parametrize("swizzle", [0, 32, 64, 128])
def test_wgmma_with_a_transposed(swizzle: int) -> None:
    np.testing.assert_array_equal(*run_wgmma("f16", 64, swizzle, False, True, True))


def test_wgmma_needs_its_fences_and_its_wait() -> None:
    from gpu_emulator import ptx as emulator

    with pytest.raises(emulator.EmulatorError, match=r"fence\.proxy\.async"):
        run_wgmma("bf16", 64, 128, False, False, False, fence="")
    with pytest.raises(emulator.EmulatorError, match="wait_group"):
        run_wgmma("bf16", 64, 128, False, False, False, wait="")
    with pytest.raises(emulator.EmulatorError, match=r"wgmma\.fence"):
        run_wgmma(
            "bf16",
            64,
            128,
            False,
            False,
            False,
            wait=(
                "wgmma.wait_group.sync.aligned 0; mov.f32 %f1, 0f00000000; "
                "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {"
            )
            + ", ".join(f"%f{i}" for i in range(32))
            + "}, %rd16, %rd15, %p2, 1, 1, 0, 0;",
        )
