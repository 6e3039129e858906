"""Drop-in modules."""

from vdiff_fast.nn.attention import (
    CrossAttention,
    RelativePositionBias,
    RotaryTables,
    SpaceTimeAttention,
    SpatialAttention,
    TemporalAttention,
)
from vdiff_fast.nn.norm import AdaGroupNormSiLU, GroupNormSiLU, RMSNormSiLU
from vdiff_fast.nn.qkv_linear import qkv_linear

__all__ = [
    "AdaGroupNormSiLU",
    "CrossAttention",
    "GroupNormSiLU",
    "RMSNormSiLU",
    "RelativePositionBias",
    "RotaryTables",
    "SpaceTimeAttention",
    "SpatialAttention",
    "TemporalAttention",
    "qkv_linear",
]
