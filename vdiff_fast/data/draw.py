"""Counter-based draws for data: clip, window, crop and flip are pure functions of (seed, stream, epoch, index)."""

from __future__ import annotations

import numpy as np

_WORD = (1 << 64) - 1


def _generator(seed: int, stream: int, epoch: int, index: int) -> np.random.Philox:
    key = np.array([seed & _WORD, stream & _WORD], dtype=np.uint64)
    # The lowest word counts the draws themselves, so two draws of one generator can never meet another's.
    counter = np.array([0, epoch & _WORD, index & _WORD, 0], dtype=np.uint64)
    return np.random.Philox(key=key, counter=counter)


class Draw:
    """The random numbers of one item.

    Word k = Philox4x64-10(key=(seed, stream), counter=(1 + k // 4, epoch, index, 0))[k % 4], as in numpy.
    Only raw words are used, whose values numpy guarantees across versions; nothing depends on a process, a worker, or
    on what was drawn for other items, so a resumed or differently split run draws the same.
    """

    def __init__(self, seed: int, epoch: int, index: int, *, stream: int = 0) -> None:
        self._bits = _generator(seed, stream, epoch, index)

    def _word(self) -> int:
        return int(self._bits.random_raw())

    def integer(self, n: int) -> int:
        """Uniform over 0 .. n-1 as floor(word * n / 2^64); its bias is below n / 2^64."""
        if n < 1:
            raise ValueError(f"cannot draw from {n} values; at least 1 is needed")
        return (self._word() * n) >> 64

    def uniform(self) -> float:
        """Uniform over [0, 1) in steps of 2^-53."""
        return (self._word() >> 11) * 2.0**-53

    def chance(self, probability: float) -> bool:
        """True with this probability. Always uses one word, so later draws do not depend on it."""
        return self.uniform() < probability


def permutation(n: int, seed: int, epoch: int, *, stream: int = 1) -> np.ndarray:
    """The order of n items in one epoch: argsort of n Philox words (stable, int64)."""
    return np.argsort(_generator(seed, stream, epoch, 0).random_raw(n), kind="stable")
