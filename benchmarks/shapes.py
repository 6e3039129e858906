"""The layers that the norms' benchmarks run; the other ops name theirs in their spec's `bench`."""

from vdiff_fast.ops._layers import GROUP_NORM_LAYERS, RMS_NORM_LAYERS, NormLayer

__all__ = ["GROUP_NORM_LAYERS", "RMS_NORM_LAYERS", "NormLayer"]
