"""Video models of diffusers, small and with random weights: one row per class, with inputs that one call takes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class SmallModel:
    """A class of diffusers by name, its configuration, and the arguments of one call."""

    cls: str
    config: dict[str, Any]
    inputs: Callable[[], dict[str, Any]]

    def build(self, seed: int = 0) -> tuple[nn.Module, dict[str, Any]]:
        """The model in eval mode and its inputs; layers that start at zero are filled, or they hide what precedes."""
        import diffusers

        torch.manual_seed(seed)
        model: nn.Module = getattr(diffusers, self.cls)(**self.config).eval()
        for parameter in model.parameters():
            if not parameter.any():
                nn.init.normal_(parameter, std=0.05)
        return model, self.inputs()


def first_tensor(output: Any) -> Tensor:
    """The prediction or reconstruction in what a model of diffusers returns."""
    return output if isinstance(output, Tensor) else output[0]


def _clip(frames: int, size: int, channels: int = 3) -> Callable[[], dict[str, Any]]:
    return lambda: {"sample": torch.randn(1, channels, frames, size, size)}


_HEADS = {"num_attention_heads": 2, "num_layers": 2, "in_channels": 4, "out_channels": 4}
_WAN = {
    **_HEADS, "attention_head_dim": 16, "text_dim": 32, "freq_dim": 32, "ffn_dim": 64, "rope_max_seq_len": 32,
}  # fmt: skip
_ADA = {**_HEADS, "attention_head_dim": 16, "sample_size": 8, "patch_size": 2}
_HUNYUAN = {
    **_HEADS, "attention_head_dim": 16, "num_refiner_layers": 1, "text_embed_dim": 32, "rope_axes_dim": (4, 6, 6),
}  # fmt: skip
_COG = {
    "num_attention_heads": 2, "num_layers": 2, "in_channels": 4, "out_channels": 4, "attention_head_dim": 16,
    "time_embed_dim": 16, "text_embed_dim": 32, "sample_width": 8, "sample_height": 8, "sample_frames": 9,
    "max_text_seq_length": 8,
}  # fmt: skip


def _latents(**more: Callable[[], Any]) -> Callable[[], dict[str, Any]]:
    """A latent clip of 3 frames, a timestep and 8 tokens of text; `more` as the model wants them."""

    def inputs() -> dict[str, Any]:
        given = {
            "hidden_states": torch.randn(1, 4, 3, 8, 8),
            "timestep": torch.tensor([500]),
            "encoder_hidden_states": torch.randn(1, 8, 32),
        }
        return given | {name: make() for name, make in more.items()}

    return inputs


def _mask() -> Tensor:
    return torch.ones(1, 8)


def _tables(tokens: int, width: int) -> tuple[Tensor, Tensor]:
    angles = torch.rand(tokens, width // 2).repeat_interleave(2, dim=1)
    return angles.cos(), angles.sin()


def _allegro_tables() -> tuple[Any, Any]:
    tables = tuple((torch.rand(8, 16), torch.rand(8, 16)) for _ in range(3))
    return tables, tuple(torch.randint(0, 8, (1, 48)) for _ in range(3))


TRANSFORMERS = {
    "Wan 2.1": SmallModel("WanTransformer3DModel", _WAN, _latents()),
    "Wan 2.2, a time per token": SmallModel(
        "WanTransformer3DModel", _WAN, _latents(timestep=lambda: torch.full((1, 48), 500))
    ),
    "Wan VACE": SmallModel(
        "WanVACETransformer3DModel", {**_WAN, "vace_layers": [0, 1], "vace_in_channels": 8},
        _latents(control_hidden_states=lambda: torch.randn(1, 8, 3, 8, 8)),
    ),
    "ChronoEdit": SmallModel("ChronoEditTransformer3DModel", {**_WAN, "rope_temporal_skip_len": 2}, _latents()),
    "SkyReels V2": SmallModel("SkyReelsV2Transformer3DModel", _WAN, _latents()),
    "SkyReels V2, diffusion forcing": SmallModel(
        "SkyReelsV2Transformer3DModel", _WAN,
        _latents(timestep=lambda: torch.full((1, 3), 500), enable_diffusion_forcing=lambda: True),
    ),
    "AnyFlow": SmallModel("AnyFlowTransformer3DModel", _WAN, lambda: {
        "hidden_states": torch.randn(1, 3, 4, 8, 8), "timestep": torch.full((1, 3), 500),
        "r_timestep": torch.full((1, 3), 400), "encoder_hidden_states": torch.randn(1, 8, 32),
    }),
    "LTX-Video": SmallModel(
        "LTXVideoTransformer3DModel",
        {**_HEADS, "attention_head_dim": 16, "cross_attention_dim": 32, "caption_channels": 32},
        lambda: {
            "hidden_states": torch.randn(1, 48, 4), "encoder_hidden_states": torch.randn(1, 8, 32),
            "timestep": torch.tensor([500]), "encoder_attention_mask": _mask(), "num_frames": 3, "height": 4,
            "width": 4,
        },
    ),
    "HunyuanVideo": SmallModel(
        "HunyuanVideoTransformer3DModel", {**_HUNYUAN, "num_single_layers": 2, "pooled_projection_dim": 16},
        _latents(
            encoder_attention_mask=_mask, pooled_projections=lambda: torch.randn(1, 16),
            guidance=lambda: torch.tensor([1000.0]),
        ),
    ),
    "HunyuanVideo, token replace": SmallModel(
        "HunyuanVideoTransformer3DModel",
        {**_HUNYUAN, "num_single_layers": 2, "pooled_projection_dim": 16, "image_condition_type": "token_replace"},
        _latents(
            encoder_attention_mask=_mask, pooled_projections=lambda: torch.randn(1, 16),
            guidance=lambda: torch.tensor([1000.0]),
        ),
    ),
    "HunyuanVideo 1.5": SmallModel(
        "HunyuanVideo15Transformer3DModel", {**_HUNYUAN, "text_embed_2_dim": 32, "image_embed_dim": 32},
        _latents(
            timestep=lambda: torch.tensor([500.0]), encoder_attention_mask=_mask,
            encoder_hidden_states_2=lambda: torch.randn(1, 8, 32),
            encoder_attention_mask_2=_mask, image_embeds=lambda: torch.randn(1, 4, 32),
        ),
    ),
    "CogVideoX 2b": SmallModel("CogVideoXTransformer3DModel", _COG, lambda: {
        "hidden_states": torch.randn(1, 3, 4, 8, 8), "timestep": torch.tensor([500]),
        "encoder_hidden_states": torch.randn(1, 8, 32),
    }),
    "CogVideoX 5b": SmallModel(
        "CogVideoXTransformer3DModel", {**_COG, "use_rotary_positional_embeddings": True}, lambda: {
            "hidden_states": torch.randn(1, 3, 4, 8, 8), "timestep": torch.tensor([500]),
            "encoder_hidden_states": torch.randn(1, 8, 32), "image_rotary_emb": _tables(48, 16),
        },
    ),
    "Cosmos": SmallModel(
        "CosmosTransformer3DModel",
        {**_HEADS, "attention_head_dim": 16, "text_embed_dim": 32, "adaln_lora_dim": 8, "max_size": (4, 8, 8),
         "concat_padding_mask": False},
        _latents(fps=lambda: 30),
    ),
    "Mochi": SmallModel(
        "MochiTransformer3DModel",
        {
            **_HEADS, "attention_head_dim": 16, "pooled_projection_dim": 16, "text_embed_dim": 32,
            "time_embed_dim": 16, "max_sequence_length": 8,
        },
        _latents(encoder_attention_mask=lambda: _mask().bool()),
    ),
    "Allegro": SmallModel(
        "AllegroTransformer3DModel",
        {
            **_HEADS, "attention_head_dim": 48, "cross_attention_dim": 96, "caption_channels": 32, "sample_height": 8,
            "sample_width": 8, "sample_frames": 3,
        },
        _latents(image_rotary_emb=_allegro_tables),
    ),
    "Latte": SmallModel(
        "LatteTransformer3DModel",
        {**_ADA, "out_channels": 8, "cross_attention_dim": 32, "caption_channels": 32, "video_length": 3,
         "norm_type": "ada_norm_single", "norm_elementwise_affine": False},
        _latents(),
    ),
    "PixArt": SmallModel(
        "PixArtTransformer2DModel",
        {**_ADA, "out_channels": 8, "cross_attention_dim": 32, "caption_channels": 32,
         "use_additional_conditions": False},
        lambda: {
            "hidden_states": torch.randn(1, 4, 8, 8), "encoder_hidden_states": torch.randn(1, 8, 32),
            "timestep": torch.tensor([500]),
            "added_cond_kwargs": {"resolution": None, "aspect_ratio": None},
        },
    ),
    "DiT": SmallModel("DiTTransformer2DModel", _ADA, lambda: {
        "hidden_states": torch.randn(1, 4, 8, 8), "timestep": torch.tensor([500]), "class_labels": torch.tensor([3]),
    }),
    "SD3": SmallModel(
        "SD3Transformer2DModel",
        {
            **_ADA, "joint_attention_dim": 32, "caption_projection_dim": 32, "pooled_projection_dim": 16,
            "pos_embed_max_size": 8, "dual_attention_layers": (0,), "qk_norm": "rms_norm",
        },
        lambda: {
            "hidden_states": torch.randn(1, 4, 8, 8), "encoder_hidden_states": torch.randn(1, 8, 32),
            "pooled_projections": torch.randn(1, 16), "timestep": torch.tensor([500]),
        },
    ),
    "FLUX.1": SmallModel(
        "FluxTransformer2DModel",
        {
            **_HEADS, "attention_head_dim": 16, "num_single_layers": 2, "joint_attention_dim": 32,
            "pooled_projection_dim": 16, "axes_dims_rope": (4, 6, 6),
        },
        lambda: {
            "hidden_states": torch.randn(1, 16, 4), "encoder_hidden_states": torch.randn(1, 8, 32),
            "pooled_projections": torch.randn(1, 16), "timestep": torch.tensor([0.5]),
            "img_ids": torch.randint(0, 4, (16, 3)).float(), "txt_ids": torch.zeros(8, 3),
        },
    ),
    "SANA-Video": SmallModel(
        "SanaVideoTransformer3DModel",
        {
            **_HEADS, "attention_head_dim": 16, "num_cross_attention_heads": 2, "cross_attention_head_dim": 16,
            "cross_attention_dim": 32, "caption_channels": 32, "sample_size": 8, "rope_max_seq_len": 32,
        },
        _latents(),
    ),
}  # fmt: skip

_LEVELS = {"block_out_channels": (16, 32), "layers_per_block": 1, "norm_num_groups": 8}
_WAN_VAE = {"base_dim": 8, "z_dim": 4, "dim_mult": [1, 2], "num_res_blocks": 1, "temperal_downsample": [True]}
_LTX_VAE = {
    "latent_channels": 8, "block_out_channels": (8, 16), "decoder_block_out_channels": (8, 16),
    "layers_per_block": (1, 1, 1), "decoder_layers_per_block": (1, 1, 1), "spatio_temporal_scaling": (True, False),
    "decoder_spatio_temporal_scaling": (True, False), "decoder_inject_noise": (False, False, False),
    "down_block_types": ("LTXVideoDownBlock3D",) * 2, "downsample_type": ("conv",) * 2,
    "upsample_residual": (False,) * 2, "upsample_factor": (1,) * 2, "patch_size": 2,
}  # fmt: skip
AUTOENCODERS = {
    "Wan 2.1's VAE": SmallModel("AutoencoderKLWan", _WAN_VAE, _clip(5, 16)),
    "Wan 2.2's VAE": SmallModel(
        "AutoencoderKLWan",
        {**_WAN_VAE, "dim_mult": [1, 2, 2], "temperal_downsample": [False, True], "decoder_base_dim": 8,
         "is_residual": True, "patch_size": 2, "in_channels": 12, "out_channels": 12},
        _clip(5, 16),
    ),
    "QwenImage's VAE": SmallModel("AutoencoderKLQwenImage", _WAN_VAE, _clip(1, 16)),
    "HunyuanVideo 1.5's VAE": SmallModel(
        "AutoencoderKLHunyuanVideo15",
        {"latent_channels": 4, "block_out_channels": (16, 32, 32), "layers_per_block": 1,
         "spatial_compression_ratio": 4, "temporal_compression_ratio": 4},
        _clip(5, 16),
    ),
    "HunyuanVideo's VAE": SmallModel(
        "AutoencoderKLHunyuanVideo",
        {**_LEVELS, "block_out_channels": (16, 16, 32, 32), "latent_channels": 4, "norm_num_groups": 2,
         "down_block_types": ("HunyuanVideoDownBlock3D",) * 4, "up_block_types": ("HunyuanVideoUpBlock3D",) * 4},
        _clip(5, 16),
    ),
    "LTX-Video's VAE": SmallModel("AutoencoderKLLTXVideo", _LTX_VAE, _clip(9, 16)),
    "LTX-Video 0.9.1's VAE": SmallModel(
        "AutoencoderKLLTXVideo", {**_LTX_VAE, "decoder_block_out_channels": (16, 16), "timestep_conditioning": True},
        lambda: {"sample": torch.randn(1, 3, 9, 16, 16), "temb": torch.tensor([0.05])},
    ),
    "LTX-2's VAE": SmallModel(
        "AutoencoderKLLTX2Video",
        {
            "latent_channels": 8, "block_out_channels": (16, 32), "decoder_block_out_channels": (16,),
            "layers_per_block": (1, 1, 1), "decoder_layers_per_block": (1, 1), "spatio_temporal_scaling": (True, True),
            "decoder_spatio_temporal_scaling": (True,), "decoder_inject_noise": (False, False),
            "down_block_types": ("LTX2VideoDownBlock3D",) * 2, "downsample_type": ("spatial", "temporal"),
            "upsample_type": ("spatiotemporal",), "upsample_residual": (True,), "upsample_factor": (2,),
            "patch_size": 2,
        },
        _clip(9, 16),
    ),
    "Mochi's VAE": SmallModel(
        "AutoencoderKLMochi",
        {"encoder_block_out_channels": (32, 32), "decoder_block_out_channels": (32, 32), "latent_channels": 4,
         "layers_per_block": (1, 1, 1), "temporal_expansions": (2,), "spatial_expansions": (2,),
         "add_attention_block": (False, True, False), "latents_mean": (0.0,) * 4, "latents_std": (1.0,) * 4},
        _clip(4, 16),
    ),
    "Cosmos' VAE": SmallModel(
        "AutoencoderKLCosmos",
        {"latent_channels": 4, "encoder_block_out_channels": (16, 32), "decode_block_out_channels": (16, 32),
         "attention_resolutions": (8,), "resolution": 16, "num_layers": 1, "patch_size": 2, "patch_type": "haar",
         "spatial_compression_ratio": 4, "temporal_compression_ratio": 4},
        _clip(9, 16),
    ),
    "Magvit (EasyAnimate's VAE)": SmallModel(
        "AutoencoderKLMagvit",
        {**_LEVELS, "latent_channels": 4, "down_block_types": ["SpatialDownBlock3D", "SpatialTemporalDownBlock3D"],
         "up_block_types": ["SpatialUpBlock3D", "SpatialTemporalUpBlock3D"]},
        _clip(5, 16),
    ),
    "CogVideoX's VAE": SmallModel(
        "AutoencoderKLCogVideoX",
        {**_LEVELS, "latent_channels": 4, "down_block_types": ("CogVideoXDownBlock3D",) * 2,
         "up_block_types": ("CogVideoXUpBlock3D",) * 2, "temporal_compression_ratio": 2, "sample_height": 16,
         "sample_width": 16},
        _clip(5, 16),
    ),
}  # fmt: skip
MODELS = {**TRANSFORMERS, **AUTOENCODERS}


def in_float64(inputs: Any) -> Any:
    """The same inputs in float64."""
    if isinstance(inputs, Tensor):
        return inputs.double() if inputs.is_floating_point() else inputs
    if isinstance(inputs, dict):
        return {key: in_float64(value) for key, value in inputs.items()}
    return type(inputs)(map(in_float64, inputs)) if isinstance(inputs, (tuple, list)) else inputs
