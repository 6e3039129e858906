# Written by tools/write_ops_stub.py from the rooms' folders; `make format` writes it again.

from vdiff_fast.ops.diffusion_loss import diffusion_loss
from vdiff_fast.ops.gated_residual import gated_residual
from vdiff_fast.ops.gated_residual_norm_modulate import gated_residual_norm_modulate
from vdiff_fast.ops.geglu import geglu
from vdiff_fast.ops.gelu_tanh import gelu_tanh
from vdiff_fast.ops.group_norm_silu import group_norm_silu
from vdiff_fast.ops.layer_norm_modulate import layer_norm_modulate
from vdiff_fast.ops.noise import noise
from vdiff_fast.ops.q_sample import q_sample
from vdiff_fast.ops.qk_norm_rope import qk_norm_rope, rope_tables
from vdiff_fast.ops.rms_norm_silu import rms_norm_silu
from vdiff_fast.ops.sampler_step import sampler_step
from vdiff_fast.ops.spatial_attention import spatial_attention, spatial_attention_qkv
from vdiff_fast.ops.temporal_attention import temporal_attention, temporal_attention_qkv
from vdiff_fast.ops.timestep_embedding import timestep_embedding
from vdiff_fast.ops.timestep_mlp import timestep_mlp

ROOMS: tuple[str, ...]
__all__ = [
    "diffusion_loss",
    "gated_residual",
    "gated_residual_norm_modulate",
    "geglu",
    "gelu_tanh",
    "group_norm_silu",
    "layer_norm_modulate",
    "noise",
    "q_sample",
    "qk_norm_rope",
    "rms_norm_silu",
    "rope_tables",
    "sampler_step",
    "spatial_attention",
    "spatial_attention_qkv",
    "temporal_attention",
    "temporal_attention_qkv",
    "timestep_embedding",
    "timestep_mlp",
]

def specs() -> list: ...
