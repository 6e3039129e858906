"""Numbers for the tests of arithmetic, and their comparison bit for bit."""

from __future__ import annotations

import numpy as np

N = 1024
RNG = np.random.default_rng(0)
SPECIAL = np.array(
    [0.0, -0.0, 1.0, -1.0, np.inf, -np.inf, np.nan, 1e-45, -1e-45, 1.1754942e-38, 1.1754944e-38,
     3.4028235e38, -3.4028235e38,
     0.5, 1.5, 2.5, -2.5, 65504.0, 65520.0, 6e-8, 2.9802322e-8, 1e-8, 2147483648.0, 4294967296.0, 9.3e18],
    np.float32,
)  # fmt: skip


def floats(seed: int = 0) -> np.ndarray:
    """Of every magnitude, with the special ones among them."""
    rng = np.random.default_rng(seed)
    bits = rng.integers(0, 2**32, N, dtype=np.uint32)
    values = bits.view(np.float32).copy()
    values[: N // 2] = rng.standard_normal(N // 2).astype(np.float32) * 10
    values[: len(SPECIAL)] = np.roll(SPECIAL, seed)
    return values


def ints(dtype: str, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    info = np.iinfo(dtype)
    values = rng.integers(info.min, info.max, N, dtype=dtype, endpoint=True)
    values[: N // 4] = rng.integers(0, 40, N // 4)
    values[:4] = [info.min, info.max, 0, 1]
    return np.roll(values, seed * 3)


def same(actual: np.ndarray, expected: np.ndarray) -> None:
    """Bit for bit; any NaN for any NaN."""
    if actual.dtype.kind == "f":
        both = np.isnan(actual) & np.isnan(expected)
        a, e = np.where(both, 0, actual), np.where(both, 0, expected)
        unsigned = {2: np.uint16, 4: np.uint32, 8: np.uint64}[actual.dtype.itemsize]
        np.testing.assert_array_equal(a.view(unsigned), e.astype(actual.dtype).view(unsigned))
    else:
        np.testing.assert_array_equal(actual, expected)
