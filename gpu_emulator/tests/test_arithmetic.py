"""Arithmetic and conversions against numpy, torch and exact fractions."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

from gpu_emulator.tests.kernels import per_lane
from gpu_emulator.tests.values import N, floats, ints, same


@pytest.mark.parametrize("bits", [16, 32, 64])
@pytest.mark.parametrize("sign", ["s", "u"])
def test_integers(sign: str, bits: int) -> None:
    kind, dtype = f"{sign}{bits}", f"{'u' if sign == 'u' else ''}int{bits}"
    a, b, c = (ints(dtype, s) for s in range(3))
    wide = [int(x) for x in a], [int(x) for x in b], [int(x) for x in c]

    def wrapped(values: list[int], to: str = dtype) -> np.ndarray:
        size = np.iinfo(to).bits
        return np.array([v % 2**size for v in values], f"uint{size}").view(to)

    def truncated(x: int, y: int) -> int:
        return -(abs(x) // abs(y)) if (x < 0) != (y < 0) else abs(x) // abs(y)

    two = {
        f"add.{kind}": lambda x, y: x + y,
        f"sub.{kind}": lambda x, y: x - y,
        f"mul.lo.{kind}": lambda x, y: x * y,
        f"mul.hi.{kind}": lambda x, y: x * y >> bits,
        f"min.{kind}": min,
        f"max.{kind}": max,
        f"div.{kind}": lambda x, y: truncated(x, y) if y else -1,
        f"rem.{kind}": lambda x, y: x - y * truncated(x, y) if y else x,
    }
    for name, f in two.items():
        same(
            per_lane(f"{name} d, a, b", [(kind, a), (kind, b)], (kind, dtype)),
            wrapped([f(x, y) for x, y in zip(*wide[:2])]),
        )
    three = [(kind, a), (kind, b), (kind, c)]
    same(per_lane(f"mad.lo.{kind} d, a, b, c", three, (kind, dtype)), wrapped([x * y + z for x, y, z in zip(*wide)]))
    if bits < 64:
        to, to_dtype = f"{sign}{2 * bits}", f"{'u' if sign == 'u' else ''}int{2 * bits}"
        same(
            per_lane(f"mul.wide.{kind} d, a, b", three[:2], (to, to_dtype)),
            wrapped([x * y for x, y in zip(*wide[:2])], to_dtype),
        )
    if sign == "s":
        same(per_lane(f"abs.{kind} d, a", three[:1], (kind, dtype)), wrapped([abs(x) for x in wide[0]]))
        same(per_lane(f"neg.{kind} d, a", three[:1], (kind, dtype)), wrapped([-x for x in wide[0]]))
    shift = np.arange(N, dtype=np.uint32) % 80
    same(
        per_lane(f"shr.{kind} d, a, b", [(kind, a), ("u32", shift)], (kind, dtype)),
        wrapped([x >> min(int(s), bits) for x, s in zip(wide[0], shift)]),
    )
    same(
        per_lane(f"shl.b{bits} d, a, b", [(kind, a), ("u32", shift)], (kind, dtype)),
        wrapped([x << int(s) if s < bits else 0 for x, s in zip(wide[0], shift)]),
    )


def test_saturated_integer_sums() -> None:
    a, b = ints("int32", 1), ints("int32", 2)
    clipped = lambda v: np.clip(v, -(2**31), 2**31 - 1).astype(np.int32)  # noqa: E731
    same(per_lane("add.sat.s32 d, a, b", [("s32", a), ("s32", b)], ("s32", "int32")), clipped(a.astype(np.int64) + b))
    same(per_lane("sub.sat.s32 d, a, b", [("s32", a), ("s32", b)], ("s32", "int32")), clipped(a.astype(np.int64) - b))


def test_carries() -> None:
    a, b = ints("uint64", 1), ints("uint64", 2)
    split = ".reg .b32 al, ah, bl, bh, dl, dh; mov.b64 {al, ah}, a; mov.b64 {bl, bh}, b;"
    joined = "mov.b64 d, {dl, dh}"
    run = lambda text: per_lane(split + text + joined, [("u64", a), ("u64", b)], ("u64", "uint64"))  # noqa: E731
    same(run("add.cc.u32 dl, al, bl; addc.u32 dh, ah, bh;"), a + b)
    same(run("sub.cc.u32 dl, al, bl; subc.u32 dh, ah, bh;"), a - b)
    low = (a & 0xFFFFFFFF) * (b & 0xFFFFFFFF)
    expected = low + (a >> np.uint64(32)) + ((b >> np.uint64(32)) << np.uint64(32))
    same(run("mad.lo.cc.u32 dl, al, bl, ah; madc.hi.u32 dh, al, bl, bh;"), expected)


def test_bits() -> None:
    a, b, c = (ints("uint32", s) for s in range(3))
    one, three = [("b32", a)], [("b32", a), ("b32", b), ("b32", c)]
    u = ("b32", "uint32")
    text = [f"{int(x):032b}" for x in a]
    same(per_lane("popc.b32 d, a", one, u), np.array([t.count("1") for t in text], np.uint32))
    same(per_lane("clz.b32 d, a", one, u), np.array([32 - int(x).bit_length() for x in a], np.uint32))
    same(per_lane("brev.b32 d, a", one, u), np.array([int(t[::-1], 2) for t in text], np.uint32))
    same(per_lane("bfind.u32 d, a", one, u), np.array([(int(x).bit_length() - 1) % 2**32 for x in a], np.uint32))
    for table in (0x96, 0xE8, 0x1B, 0xC0):
        expected = np.zeros(N, np.uint32)
        for k in range(8):
            if table >> k & 1:
                expected |= (a if k & 4 else ~a) & (b if k & 2 else ~b) & (c if k & 1 else ~c)
        same(per_lane(f"lop3.b32 d, a, b, c, {table}", three, u), expected)
    n = c % 40
    both = [int(y) << 32 | int(x) for x, y in zip(a, b)]
    same(
        per_lane("shf.l.wrap.b32 d, a, b, c", [*three[:2], ("b32", n)], u),
        np.array([(v << (int(s) & 31)) >> 32 & 0xFFFFFFFF for v, s in zip(both, n)], np.uint32),
    )
    same(
        per_lane("shf.r.clamp.b32 d, a, b, c", [*three[:2], ("b32", n)], u),
        np.array([v >> min(int(s), 32) & 0xFFFFFFFF for v, s in zip(both, n)], np.uint32),
    )
    selector = c & 0x7777
    expected = [sum((v >> 8 * (int(s) >> 4 * k & 7) & 0xFF) << 8 * k for k in range(4)) for v, s in zip(both, selector)]
    same(per_lane("prmt.b32 d, a, b, c", [*three[:2], ("b32", selector)], u), np.array(expected, np.uint32))
    same(
        per_lane("prmt.b32 d, a, a, 0x9999", one, u), np.array([0xFFFFFFFF if x >> 15 & 1 else 0 for x in a], np.uint32)
    )


def test_bit_fields() -> None:
    a, b = ints("uint32", 0), ints("uint32", 1)
    position, length = np.arange(N, dtype=np.uint32) % 37, (np.arange(N, dtype=np.uint32) // 37) % 34
    inputs = [("b32", a), ("b32", position), ("b32", length)]
    unsigned = [int(x) >> int(p) & ((1 << int(n)) - 1) for x, p, n in zip(a, position, length)]
    same(per_lane("bfe.u32 d, a, b, c", inputs, ("u32", "uint32")), np.array(unsigned, np.uint32))

    def signed(x: int, p: int, n: int) -> int:
        if n == 0:
            return 0
        sign = x >> min(p + n - 1, 31) & 1
        bits = [(x >> i & 1) if i < 32 else sign for i in range(p, p + n)]
        value = sum(bit << i for i, bit in enumerate(bits[:32]))
        return (value | (-1 << min(n, 32) if sign else 0)) % 2**32 if n < 32 else value % 2**32

    expected = [signed(int(x), int(p), int(n)) for x, p, n in zip(a, position, length)]
    same(per_lane("bfe.s32 d, a, b, c", inputs, ("u32", "uint32")), np.array(expected, np.uint32))
    merged = per_lane(".reg .b32 p, n; and.b32 p, c, 31; shr.u32 n, c, 8; and.b32 n, n, 31; bfi.b32 d, a, b, p, n",
                      [("b32", a), ("b32", b), ("b32", a)], ("b32", "uint32"))  # fmt: skip
    wanted = []
    for x, y in zip(a, b):
        p, n = int(x) & 31, int(x) >> 8 & 31
        mask = ((1 << n) - 1) << p & 0xFFFFFFFF
        wanted.append((int(x) << p) & mask | int(y) & ~mask & 0xFFFFFFFF)
    same(merged, np.array(wanted, np.uint32))


@pytest.mark.filterwarnings("ignore")
def test_float32_arithmetic() -> None:
    a, b = floats(0), floats(1)
    two, f32 = [("f32", a), ("f32", b)], ("f32", "float32")
    same(per_lane("add.f32 d, a, b", two, f32), a + b)
    same(per_lane("sub.rn.f32 d, a, b", two, f32), a - b)
    same(per_lane("mul.f32 d, a, b", two, f32), a * b)
    same(per_lane("div.rn.f32 d, a, b", two, f32), a / b)
    same(per_lane("rcp.rn.f32 d, a", two[:1], f32), np.float32(1) / a)
    same(per_lane("sqrt.rn.f32 d, a", two[:1], f32), np.sqrt(a))
    same(per_lane("neg.f32 d, a", two[:1], f32), -a)
    same(per_lane("abs.f32 d, a", two[:1], f32), np.abs(a))
    zeros = (a == 0) & (b == 0)  # -0 is below +0 here, numpy takes the first
    least = np.where(zeros, np.where(np.signbit(a) | np.signbit(b), np.float32(-0.0), np.float32(0)), np.fmin(a, b))
    most = np.where(zeros, np.where(np.signbit(a) & np.signbit(b), np.float32(-0.0), np.float32(0)), np.maximum(a, b))
    same(per_lane("min.f32 d, a, b", two, f32), least)
    same(per_lane("max.NaN.f32 d, a, b", two, f32), most)
    same(per_lane("copysign.f32 d, a, b", two, f32), np.copysign(b, a))
    nan = per_lane("add.f32 d, a, b", two, ("b32", "uint32"))[np.isnan(a + b)]
    assert (nan == 0x7FFFFFFF).all()


def exact_fma(a: np.ndarray, b: np.ndarray, c: np.ndarray, up: int) -> np.ndarray:
    """Rounded once: up 0 to nearest, -1 down, 1 up, 2 to zero; of finite numbers in the normal range."""
    out = []
    for x, y, z in zip(a, b, c):
        exact = Fraction(float(x)) * Fraction(float(y)) + Fraction(float(z))
        near = np.float32(float(exact)) if exact else np.float32(0)
        candidates = sorted({np.nextafter(near, np.float32(-np.inf)), near, np.nextafter(near, np.float32(np.inf))})
        below = [v for v in candidates if Fraction(float(v)) <= exact]
        above = [v for v in candidates if Fraction(float(v)) >= exact]
        if up == 0:
            nearest = min(abs(Fraction(float(v)) - exact) for v in candidates)
            tied = [v for v in candidates if abs(Fraction(float(v)) - exact) == nearest]
            out.append(min(tied, key=lambda v: int(v.view(np.uint32)) & 1))
        elif up == -1 or (up == 2 and exact > 0):
            out.append(below[-1])
        else:
            out.append(above[0])
    return np.array(out, np.float32)


def test_float32_fma_rounds_once() -> None:
    rng = np.random.default_rng(5)
    a, b = (rng.standard_normal(N).astype(np.float32) for _ in range(2))
    c = (-(a * b) + rng.standard_normal(N).astype(np.float32) * np.float32(2.0) ** rng.integers(-40, 4, N)).astype(
        np.float32
    )
    three, f32 = [("f32", a), ("f32", b), ("f32", c)], ("f32", "float32")
    for mode, up in (("rn", 0), ("rm", -1), ("rp", 1), ("rz", 2)):
        same(per_lane(f"fma.{mode}.f32 d, a, b, c", three, f32), exact_fma(a, b, c, up))


def test_float32_directed_sums() -> None:
    rng = np.random.default_rng(6)
    a, b = rng.standard_normal(N).astype(np.float32), (rng.standard_normal(N) * 1e-5).astype(np.float32)
    one = np.ones(N, np.float32)
    for mode, up in (("rm", -1), ("rp", 1), ("rz", 2)):
        same(
            per_lane(f"add.{mode}.f32 d, a, b", [("f32", a), ("f32", b)], ("f32", "float32")), exact_fma(a, one, b, up)
        )
        same(
            per_lane(f"mul.{mode}.f32 d, a, b", [("f32", a), ("f32", b)], ("f32", "float32")),
            exact_fma(a, b, one * 0, up),
        )


@pytest.mark.filterwarnings("ignore")
def test_flush_to_zero_and_saturation() -> None:
    a, b = floats(0), floats(1)
    flush = lambda x: np.where(np.abs(x) < np.float32(1.17549435e-38), np.copysign(np.float32(0), x), x)  # noqa: E731
    two, f32 = [("f32", a), ("f32", b)], ("f32", "float32")
    same(per_lane("mul.ftz.f32 d, a, b", two, f32), flush(flush(a) * flush(b)))
    same(
        per_lane("add.sat.f32 d, a, b", two, f32),
        np.where(np.isnan(a + b), 0, np.clip(a + b, 0, 1)).astype(np.float32) + 0,
    )
    same(
        per_lane("cvt.sat.f32.f32 d, a", two[:1], f32),
        np.where(np.isnan(a), 0, np.clip(a, 0, 1)).astype(np.float32) + 0,
    )


@pytest.mark.filterwarnings("ignore")
def test_float64_arithmetic() -> None:
    rng = np.random.default_rng(1)
    a, b, c = (rng.standard_normal(N) * 10.0 ** rng.integers(-200, 200, N) for _ in range(3))
    three, f64 = [("f64", a), ("f64", b), ("f64", c)], ("f64", "float64")
    same(per_lane("add.f64 d, a, b", three[:2], f64), a + b)
    same(per_lane("mul.f64 d, a, b", three[:2], f64), a * b)
    same(per_lane("div.rn.f64 d, a, b", three[:2], f64), a / b)
    same(per_lane("sqrt.rn.f64 d, a", three[:1], f64), np.sqrt(a))
    x, y = rng.standard_normal(N), rng.standard_normal(N)
    z = -x * y + rng.standard_normal(N) * 1e-17
    expected = [float(Fraction(p) * Fraction(q) + Fraction(r)) for p, q, r in zip(x, y, z)]
    same(per_lane("fma.rn.f64 d, a, b, c", [("f64", x), ("f64", y), ("f64", z)], f64), np.array(expected))


def test_comparisons() -> None:
    a, b = floats(0), floats(1)
    b[::3] = a[::3]
    nan = np.isnan(a) | np.isnan(b)
    ordered = {"eq": a == b, "ne": (a != b) & ~nan, "lt": a < b, "le": a <= b, "gt": a > b, "ge": a >= b, "num": ~nan}
    unordered = {f"{k}u": v | nan for k, v in ordered.items() if k != "num"} | {"nan": nan}
    for name, expected in (ordered | unordered).items():
        got = per_lane(
            f".reg .pred q; setp.{name}.f32 q, a, b; selp.u32 d, 1, 0, q", [("f32", a), ("f32", b)], ("u32", "uint32")
        )
        same(got, expected.astype(np.uint32))
    both = per_lane(
        ".reg .pred q, r, s; setp.gt.f32 s, a, 0f00000000; setp.lt.and.f32 q|r, a, b, s;"
        ".reg .b32 t; selp.u32 d, 1, 0, q; selp.u32 t, 2, 0, r; add.u32 d, d, t",
        [("f32", a), ("f32", b)], ("u32", "uint32"),
    )  # fmt: skip
    same(both, ((a < b) & (a > 0)) * 1 + (~(a < b) & (a > 0)) * 2)
    x, y = ints("int32", 0), ints("int32", 1)
    for name, expected in {
        "lt.s32": x < y,
        "lt.u32": x.view(np.uint32) < y.view(np.uint32),
        "hs.u32": x.view(np.uint32) >= y.view(np.uint32),
    }.items():
        got = per_lane(
            f".reg .pred q; setp.{name} q, a, b; @!q mov.u32 d, 0; @q mov.u32 d, 1",
            [("b32", x), ("b32", y)],
            ("u32", "uint32"),
        )
        same(got, expected.astype(np.uint32))


def test_approximations_are_near() -> None:
    rng = np.random.default_rng(7)
    a = (rng.random(N) * 20 + 1e-3).astype(np.float32)
    near = {
        "rcp.approx.f32": lambda x: 1 / x, "sqrt.approx.f32": np.sqrt, "rsqrt.approx.f32": lambda x: 1 / np.sqrt(x),
        "lg2.approx.f32": np.log2, "ex2.approx.f32": np.exp2, "sin.approx.f32": np.sin, "cos.approx.f32": np.cos,
        "tanh.approx.f32": np.tanh,
    }  # fmt: skip
    for name, f in near.items():
        got = per_lane(f"{name} d, a", [("f32", a)], ("f32", "float32"))
        np.testing.assert_array_equal(got, f(a.astype(np.float64)).astype(np.float32))
    assert per_lane("ex2.approx.ftz.f32 d, a", [("f32", np.float32([-140.0, -126.0]))], ("f32", "float32"))[0] == 0


def test_dp4a() -> None:
    a, b, c = ints("uint32", 0), ints("uint32", 1), ints("uint32", 2)
    inputs = [("b32", a), ("b32", b), ("b32", c)]
    x, y = a.view(np.uint8).reshape(-1, 4).astype(np.int64), b.view(np.int8).reshape(-1, 4).astype(np.int64)
    same(per_lane("dp4a.u32.s32 d, a, b, c", inputs, ("b32", "uint32")), ((x * y).sum(1) + c).astype(np.uint32))
