"""The layers that norms, attentions and adaLN ops are measured on; the other ops name theirs in their spec."""

from vdiff_fast.ops._common.cases.layers import (
    ATTENTION_LAYERS,
    GROUP_NORM_LAYERS,
    RMS_NORM_LAYERS,
    TOKEN_LAYERS,
    AttentionLayer,
    NormLayer,
    TokenLayer,
)

__all__ = [
    "ATTENTION_LAYERS",
    "GROUP_NORM_LAYERS",
    "RMS_NORM_LAYERS",
    "TOKEN_LAYERS",
    "AttentionLayer",
    "NormLayer",
    "TokenLayer",
]
