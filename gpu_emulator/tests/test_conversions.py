"""Half precision and conversions between all types."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch

from gpu_emulator.tests.kernels import per_lane
from gpu_emulator.tests.values import N, floats, ints, same

HALVES = {"f16": torch.float16, "bf16": torch.bfloat16}


def halves(kind: str, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    bits = torch.randint(0, 2**16, (N,), generator=generator).to(torch.int32).to(torch.int16)
    values = bits.view(HALVES[kind])
    return torch.where(torch.arange(N) < N // 2, torch.randn(N, generator=generator).to(values.dtype), values)


def same_halves(actual: np.ndarray, expected: torch.Tensor) -> None:
    value = torch.from_numpy(actual.view(np.int16)).view(expected.dtype)
    both = value.isnan() & expected.isnan()
    a, e = (torch.where(both, torch.zeros_like(v), v).view(torch.int16) for v in (value, expected))
    assert torch.equal(a, e)


@pytest.mark.parametrize("kind", HALVES)
def test_halves(kind: str) -> None:
    a, b = halves(kind, 0), halves(kind, 1)
    raw = [(kind, t.view(torch.int16).numpy()) for t in (a, b)]
    x, y = a.double(), b.double()
    out = (kind, "uint16")
    round_ = lambda v: v.to(HALVES[kind])  # noqa: E731 - torch rounds a double to a half by way of a float
    for name, value in (("add", x + y), ("sub", x - y), ("mul", x * y)):
        # A float holds sums and products of f16 exactly enough; of bf16 too, by its 24 >= 2 * 8 + 2 bits.
        same_halves(per_lane(f"{name}.{kind} d, a, b", raw[:2], out), round_(value.float()))
    same_halves(per_lane(f"min.{kind} d, a, b", raw[:2], out), round_(torch.fmin(x, y)))
    same_halves(per_lane(f"max.NaN.{kind} d, a, b", raw[:2], out), round_(torch.maximum(x, y)))
    same_halves(per_lane(f"neg.{kind} d, a", raw[:1], out), -a)

    # fma: in a subset whose result is finite and normal, by exact fractions
    s = torch.randn(N, generator=torch.Generator().manual_seed(9)).to(HALVES[kind])
    t = torch.randn(N, generator=torch.Generator().manual_seed(10)).to(HALVES[kind])
    u = (-(s.double() * t.double()) * 1.001).to(HALVES[kind])
    got = per_lane(f"fma.rn.{kind} d, a, b, c", [(kind, v.view(torch.int16).numpy()) for v in (s, t, u)], out)
    value = torch.from_numpy(got.view(np.int16)).view(HALVES[kind]).double()
    for p, q, r, v in zip(s.double(), t.double(), u.double(), value):
        exact = Fraction(float(p)) * Fraction(float(q)) + Fraction(float(r))
        if exact == 0:
            assert v == 0
            continue
        digits = 11 if kind == "f16" else 8
        scale = Fraction(2) ** max(
            int(np.floor(np.log2(abs(float(exact))))) - (digits - 1), -24 if kind == "f16" else -133
        )
        assert abs(Fraction(float(v)) - exact) <= scale / 2, (p, q, r, v)


@pytest.mark.parametrize("kind", HALVES)
def test_narrowing(kind: str) -> None:
    a, b = floats(3), floats(4)
    expected_a, expected_b = torch.from_numpy(a).to(HALVES[kind]), torch.from_numpy(b).to(HALVES[kind])
    same_halves(per_lane(f"cvt.rn.{kind}.f32 d, a", [("f32", a)], (kind, "uint16")), expected_a)
    pair = per_lane(f"cvt.rn.{kind}x2.f32 d, a, b", [("f32", a), ("f32", b)], ("b32", "uint32"))
    same_halves((pair >> 16).astype(np.uint16), expected_a)
    same_halves((pair & 0xFFFF).astype(np.uint16), expected_b)
    # The general way gives the same as the fast one.
    slow = per_lane(f"cvt.rn.relu.{kind}x2.f32 d, a, b", [("f32", a), ("f32", b)], ("b32", "uint32"))
    same_halves((slow & 0xFFFF).astype(np.uint16), torch.relu(expected_b) + 0)
    every = np.arange(2**16, dtype=np.uint16)
    for part in np.split(every, 64):
        wide = torch.from_numpy(part.view(np.int16)).view(HALVES[kind]).float().numpy()
        same(per_lane(f"cvt.f32.{kind} d, a", [(kind, part)], ("f32", "float32")), wide)
    toward_zero = per_lane(f"cvt.rz.{kind}.f32 d, a", [("f32", a)], (kind, "uint16"))
    value = torch.from_numpy(toward_zero.view(np.int16)).view(HALVES[kind]).double().numpy()
    finite = np.isfinite(a)
    assert (np.abs(value[finite]) <= np.abs(a[finite].astype(np.float64))).all()


@pytest.mark.filterwarnings("ignore")
def test_conversions_to_integers() -> None:
    a = floats(2)
    for mode, f in (("rni", np.rint), ("rzi", np.trunc), ("rmi", np.floor), ("rpi", np.ceil)):
        same(per_lane(f"cvt.{mode}.f32.f32 d, a", [("f32", a)], ("f32", "float32")), f(a))
        for kind, dtype in (("s32", "int32"), ("u32", "uint32"), ("s64", "int64"), ("u64", "uint64")):
            info = np.iinfo(dtype)
            # A float beyond every integer, infinite ones too, gives the last one.
            rounded = np.nan_to_num(f(a.astype(np.float64)), nan=0, posinf=1e30, neginf=-1e30)
            wide = [max(info.min, min(info.max, int(x))) for x in rounded]
            if info.bits == 64:
                wide = [(-(2**63) if kind == "s64" else 2**63) if np.isnan(x) else w for x, w in zip(a, wide)]
            same(per_lane(f"cvt.{mode}.{kind}.f32 d, a", [("f32", a)], (kind, dtype)), np.array(wide, dtype))


def test_conversions_of_integers() -> None:
    for kind, dtype in (("s32", "int32"), ("u32", "uint32"), ("s64", "int64"), ("u64", "uint64"), ("s16", "int16")):
        a = ints(dtype, 1)
        same(per_lane(f"cvt.rn.f32.{kind} d, a", [(kind, a)], ("f32", "float32")), a.astype(np.float32))
        same(per_lane(f"cvt.rn.f64.{kind} d, a", [(kind, a)], ("f64", "float64")), a.astype(np.float64))
    a = ints("int32", 1)
    same(per_lane("cvt.s64.s32 d, a", [("s32", a)], ("s64", "int64")), a.astype(np.int64))
    same(per_lane("cvt.u64.u32 d, a", [("s32", a)], ("u64", "uint64")), a.view(np.uint32).astype(np.uint64))
    same(per_lane("cvt.s32.s8 d, a", [("s32", a)], ("s32", "int32")), a.astype(np.int8).astype(np.int32))
    same(per_lane("cvt.u16.u32 d, a", [("s32", a)], ("u16", "uint16")), a.astype(np.uint16))
    same(per_lane("cvt.sat.s8.s32 d, a", [("s32", a)], ("s16", "int16")), np.clip(a, -128, 127).astype(np.int16))
    same(per_lane("cvt.sat.u32.s32 d, a", [("s32", a)], ("u32", "uint32")), np.clip(a, 0, None).astype(np.uint32))


@pytest.mark.filterwarnings("ignore")
def test_conversions_between_floats() -> None:
    rng = np.random.default_rng(3)
    a = rng.standard_normal(N) * 10.0 ** rng.integers(-44, 38, N)
    same(per_lane("cvt.rn.f32.f64 d, a", [("f64", a)], ("f32", "float32")), a.astype(np.float32))
    same(per_lane("cvt.f64.f32 d, a", [("f32", floats(1))], ("f64", "float64")), floats(1).astype(np.float64))
    up = per_lane("cvt.rp.f32.f64 d, a", [("f64", a)], ("f32", "float32")).astype(np.float64)
    assert (up >= a).all()
    tf32 = per_lane("cvt.rna.tf32.f32 d, a", [("f32", floats(1))], ("b32", "uint32"))
    assert (tf32[~np.isnan(floats(1))] & 0x1FFF == 0).all()
