"""The norms of other libraries that an op computes: one row per class, in one file per family."""

from vdiff_fast.patch.families.rows import NormRow, row_of, why_unknown

__all__ = ["NormRow", "row_of", "why_unknown"]
