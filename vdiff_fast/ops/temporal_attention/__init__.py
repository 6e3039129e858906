from vdiff_fast.ops.temporal_attention.api import temporal_attention, temporal_attention_qkv

__all__ = ["temporal_attention", "temporal_attention_qkv"]
