"""Functions on tensors. One room per op; adding an op adds its folder and its line here."""

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

# Rooms in the order of the documentation; `vdiff_fast.ops.specs()` loads their spec.py.
ROOMS = (
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
    "sampler_step",
    "spatial_attention",
    "temporal_attention",
    "timestep_embedding",
    "timestep_mlp",
)

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


def specs() -> list:
    """The OpSpec of every room, for tests, benchmarks and the support table."""
    from importlib import import_module

    return [import_module(f"vdiff_fast.ops.{room}.spec").SPEC for room in ROOMS]
