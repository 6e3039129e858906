"""Pipelines' folders of every family, random and small: four latent channels, embeddings of 16."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
import torch

_UNET_BLOCKS = {
    "in_channels": 4, "out_channels": 4, "block_out_channels": (16,), "layers_per_block": 1,
    "cross_attention_dim": 16, "norm_num_groups": 4, "sample_size": 8,
}  # fmt: skip
NETWORKS: dict[str, dict[str, Any]] = {
    "WanTransformer3DModel": {
        "num_attention_heads": 2, "attention_head_dim": 12, "in_channels": 4, "out_channels": 4, "text_dim": 16,
        "freq_dim": 16, "ffn_dim": 32, "num_layers": 2, "rope_max_seq_len": 32,
    },
    "LTXVideoTransformer3DModel": {
        "in_channels": 4, "out_channels": 4, "num_attention_heads": 2, "attention_head_dim": 8, "num_layers": 2,
        "cross_attention_dim": 16, "caption_channels": 16,
    },
    "CogVideoXTransformer3DModel": {
        "num_attention_heads": 2, "attention_head_dim": 16, "in_channels": 4, "out_channels": 4, "time_embed_dim": 8,
        "text_embed_dim": 16, "num_layers": 2, "sample_width": 8, "sample_height": 8, "sample_frames": 9,
        "max_text_seq_length": 8, "use_rotary_positional_embeddings": True,
    },
    "LatteTransformer3DModel": {
        "num_attention_heads": 2, "attention_head_dim": 8, "in_channels": 4, "out_channels": 8, "num_layers": 2,
        "cross_attention_dim": 16, "caption_channels": 16, "sample_size": 8, "patch_size": 2, "video_length": 3,
        "norm_type": "ada_norm_single", "norm_elementwise_affine": False, "activation_fn": "gelu-approximate",
        "num_embeds_ada_norm": 1000,
    },
    "UNetMotionModel": {
        **_UNET_BLOCKS, "down_block_types": ("CrossAttnDownBlockMotion",),
        "up_block_types": ("CrossAttnUpBlockMotion",), "num_attention_heads": 2,
        "motion_num_attention_heads": 2,
    },
}  # fmt: skip
NAMES = tuple(NETWORKS)


def make_scheduler(name: str) -> Any:
    if name == "WanTransformer3DModel":
        return diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    if name == "LTXVideoTransformer3DModel":
        return diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, base_shift=0.95, max_shift=2.05)
    if name == "CogVideoXTransformer3DModel":
        return diffusers.CogVideoXDDIMScheduler(
            prediction_type="v_prediction",
            rescale_betas_zero_snr=True,
            snr_shift_scale=3.0,
            timestep_spacing="trailing",
        )
    return diffusers.DDIMScheduler(beta_schedule="linear", beta_start=1e-4, beta_end=0.02, clip_sample=False)


def make_pipeline(name: str, folder: Path, **changes: Any) -> Path:
    """transformer/ or unet/, and scheduler/."""
    torch.manual_seed(0)
    network = getattr(diffusers, name)(**NETWORKS[name] | changes)
    with torch.no_grad():
        for parameter in network.parameters():
            # What starts at zero would hide what lies behind it.
            if not parameter.any():
                parameter.normal_(std=0.1)
    network.save_pretrained(folder / ("unet" if name == "UNetMotionModel" else "transformer"))
    make_scheduler(name).save_pretrained(folder / "scheduler")
    return folder
