"""Draws are fixed for ever, independent of each other, and uniform."""

from __future__ import annotations

import numpy as np
import pytest

from vdiff_fast.data import Draw, permutation


def test_values_are_pinned() -> None:
    """A run saved today must draw the same after any update."""
    draw = Draw(1234, 5, 678)
    assert [draw.integer(1000) for _ in range(6)] == [650, 441, 903, 479, 423, 188]
    assert permutation(8, 1234, 5).tolist() == [7, 0, 4, 5, 3, 1, 6, 2]


def test_every_coordinate_matters() -> None:
    seen = {
        Draw(*key, stream=stream).integer(1 << 62)
        for key in ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (-1, 0, 0), (2**64, 1, 1))
        for stream in (0, 1)
    }
    assert len(seen) == 12


def test_seeds_of_any_sign() -> None:
    assert Draw(-1, 0, 0).integer(1 << 62) == Draw(2**64 - 1, 0, 0).integer(1 << 62)


def test_uniform() -> None:
    draw = Draw(0, 0, 0)
    counts = np.bincount([draw.integer(7) for _ in range(7000)], minlength=7)
    # 6 degrees of freedom: chi-squared above 30 has probability 4e-5, and the draw is fixed.
    assert len(counts) == 7
    assert ((counts - 1000) ** 2 / 1000).sum() < 30
    values = np.array([draw.uniform() for _ in range(5000)])
    assert 0 <= values.min() < 0.01
    assert 0.99 < values.max() < 1
    assert abs(np.mean([draw.chance(0.25) for _ in range(8000)]) - 0.25) < 0.02
    assert not any(draw.chance(0.0) for _ in range(100))
    assert all(draw.chance(1.0) for _ in range(100))
    with pytest.raises(ValueError, match="cannot draw from 0 values"):
        draw.integer(0)


def test_permutations() -> None:
    orders = [permutation(500, 3, epoch) for epoch in range(4)]
    for order in orders:
        assert np.array_equal(np.sort(order), np.arange(500))
    # About one element of a random permutation stays in place.
    assert max(int((a == b).sum()) for a in orders for b in orders if a is not b) < 10
