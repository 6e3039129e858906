"""Launch parameters of the Triton kernels."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class LinearConfig:
    rows: int
    columns: int
    num_warps: int


# A program holds `rows` outputs of up to 64 samples and reads `columns` inputs at a time. Not measured on a GPU yet.
LINEAR = LinearConfig(rows=16, columns=64, num_warps=4)
# Samples of a program: a dot's least number of rows, or all of a batch up to the largest.
SMALL, LARGE = 16, 64


def samples_of(batch: int) -> int:
    return next((size for size in (SMALL, 32) if batch <= size), LARGE)
