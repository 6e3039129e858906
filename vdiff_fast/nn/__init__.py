"""Drop-in modules."""

from vdiff_fast.nn.attention import (
    CrossAttention,
    RelativePositionBias,
    RotaryTables,
    SpaceTimeAttention,
    SpatialAttention,
    TemporalAttention,
)
from vdiff_fast.nn.convolution import FrameConv2d, TemporalConv, UpsampleConv2d
from vdiff_fast.nn.embedding import GridEmbedding, LabelEmbedding, TimestepEmbedding
from vdiff_fast.nn.modulation import AdaLayerNorm, AdaLayerNormZero, GELUMLP
from vdiff_fast.nn.norm import AdaGroupNormSiLU, GroupNormSiLU, RMSNormSiLU
from vdiff_fast.nn.patch_embedding import PatchEmbed, sincos_grid, sincos_positions
from vdiff_fast.nn.qkv_linear import qkv_linear
from vdiff_fast.nn.token_attention import TokenAttention, TokenCrossAttention

__all__ = [
    "AdaLayerNorm",
    "AdaLayerNormZero",
    "GELUMLP",
    "PatchEmbed",
    "TokenAttention",
    "TokenCrossAttention",
    "sincos_grid",
    "sincos_positions",
    "AdaGroupNormSiLU",
    "CrossAttention",
    "FrameConv2d",
    "GridEmbedding",
    "GroupNormSiLU",
    "LabelEmbedding",
    "RMSNormSiLU",
    "RelativePositionBias",
    "RotaryTables",
    "SpaceTimeAttention",
    "SpatialAttention",
    "TemporalAttention",
    "TemporalConv",
    "TimestepEmbedding",
    "UpsampleConv2d",
    "qkv_linear",
]
