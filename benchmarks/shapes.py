"""The layers that the norms' and the adaLN ops' benchmarks run; the other ops name theirs in their spec's `bench`."""

from vdiff_fast.ops._layers import GROUP_NORM_LAYERS, RMS_NORM_LAYERS, TOKEN_LAYERS, NormLayer, TokenLayer

__all__ = ["GROUP_NORM_LAYERS", "RMS_NORM_LAYERS", "TOKEN_LAYERS", "NormLayer", "TokenLayer"]
