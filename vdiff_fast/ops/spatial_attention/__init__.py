from vdiff_fast.ops.spatial_attention.api import spatial_attention, spatial_attention_qkv

__all__ = ["spatial_attention", "spatial_attention_qkv"]
