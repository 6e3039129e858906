"""Drop-in modules."""

from vdiff_fast.nn.attention import (
    CrossAttention,
    RelativePositionBias,
    SpaceTimeAttention,
    SpatialAttention,
    TemporalAttention,
)
from vdiff_fast.nn.convolution import FrameConv2d, TemporalConv
from vdiff_fast.nn.embedding import GridEmbedding, LabelEmbedding, TimestepEmbedding
from vdiff_fast.nn.modulation import GELUMLP, AdaLayerNorm, AdaLayerNormZero
from vdiff_fast.nn.norm import AdaGroupNormSiLU, GroupNormSiLU, RMSNormSiLU
from vdiff_fast.nn.patch_embedding import PatchEmbed, sincos_grid, sincos_positions
from vdiff_fast.nn.qkv_linear import qkv_linear
from vdiff_fast.nn.rotary import RotaryTables
from vdiff_fast.nn.token_attention import TokenAttention, TokenCrossAttention

__all__ = [
    "GELUMLP",
    "AdaGroupNormSiLU",
    "AdaLayerNorm",
    "AdaLayerNormZero",
    "CrossAttention",
    "FrameConv2d",
    "GridEmbedding",
    "GroupNormSiLU",
    "LabelEmbedding",
    "PatchEmbed",
    "RMSNormSiLU",
    "RelativePositionBias",
    "RotaryTables",
    "SpaceTimeAttention",
    "SpatialAttention",
    "TemporalAttention",
    "TemporalConv",
    "TimestepEmbedding",
    "TokenAttention",
    "TokenCrossAttention",
    "qkv_linear",
    "sincos_grid",
    "sincos_positions",
]
