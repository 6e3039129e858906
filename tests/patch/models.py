"""Small models of diffusers with random weights, and their inputs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import vdiff_fast as vf

pytest.importorskip("diffusers", reason="needs diffusers")

from diffusers import (
    AutoencoderKL,
    AutoencoderKLTemporalDecoder,
    LatteTransformer3DModel,
    UNet3DConditionModel,
    UNetMotionModel,
    UNetSpatioTemporalConditionModel,
)
from diffusers.models.resnet import ResnetBlock2D

Inputs = Callable[[], dict[str, Any]]
FRAMES = 4


def motion() -> tuple[nn.Module, Inputs]:
    model = UNetMotionModel(
        sample_size=8, block_out_channels=(32, 64), layers_per_block=1, cross_attention_dim=32,
        down_block_types=("CrossAttnDownBlockMotion", "DownBlockMotion"),
        up_block_types=("UpBlockMotion", "CrossAttnUpBlockMotion"),
        num_attention_heads=4, motion_num_attention_heads=4, use_motion_mid_block=True,
    )  # fmt: skip
    return model, lambda: {
        "sample": torch.randn(1, 4, FRAMES, 8, 8),
        "timestep": torch.tensor([5]),
        "encoder_hidden_states": torch.randn(FRAMES, 7, 32),
    }


def stable_video_diffusion() -> tuple[nn.Module, Inputs]:
    model = UNetSpatioTemporalConditionModel(
        sample_size=8, block_out_channels=(32, 64), layers_per_block=1, cross_attention_dim=32,
        down_block_types=("CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"),
        up_block_types=("UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"),
        num_attention_heads=(2, 4), projection_class_embeddings_input_dim=96, addition_time_embed_dim=32,
    )  # fmt: skip
    return model, lambda: {
        "sample": torch.randn(1, FRAMES, 8, 8, 8),
        "timestep": torch.tensor([5.0]),
        "encoder_hidden_states": torch.randn(1, 1, 32),
        "added_time_ids": torch.randn(1, 3),
    }


def modelscope() -> tuple[nn.Module, Inputs]:
    model = UNet3DConditionModel(
        sample_size=8, block_out_channels=(32, 64), layers_per_block=1, cross_attention_dim=32, attention_head_dim=16,
        down_block_types=("CrossAttnDownBlock3D", "DownBlock3D"), up_block_types=("UpBlock3D", "CrossAttnUpBlock3D"),
    )  # fmt: skip
    return model, lambda: {
        "sample": torch.randn(1, 4, FRAMES, 8, 8),
        "timestep": torch.tensor([5]),
        "encoder_hidden_states": torch.randn(1, 7, 32),
    }


def vae() -> tuple[nn.Module, Inputs]:
    model = AutoencoderKL(
        block_out_channels=(32, 64), layers_per_block=1,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
    )  # fmt: skip
    return model, lambda: {"sample": torch.randn(2, 3, 16, 16)}


def video_vae() -> tuple[nn.Module, Inputs]:
    model = AutoencoderKLTemporalDecoder(
        block_out_channels=(32, 64), layers_per_block=1, down_block_types=("DownEncoderBlock2D",) * 2
    )
    return model, lambda: {"sample": torch.randn(FRAMES, 3, 16, 16), "num_frames": FRAMES}


def latte() -> tuple[nn.Module, Inputs]:
    model = LatteTransformer3DModel(
        num_attention_heads=4, attention_head_dim=16, in_channels=4, out_channels=8, num_layers=2, sample_size=8,
        cross_attention_dim=64, caption_channels=32, patch_size=2, video_length=FRAMES,
    )  # fmt: skip
    return model, lambda: {
        "hidden_states": torch.randn(1, 4, FRAMES, 8, 8),
        "timestep": torch.tensor([5]),
        "encoder_hidden_states": torch.randn(1, 7, 32),
    }


# Modules that each op takes over, counted by hand in the model's source.
MODELS: dict[str, tuple[Callable[[], tuple[nn.Module, Inputs]], dict[str, int]]] = {
    "animatediff": (motion, {"geglu": 11, "group_norm_silu": 9, "temporal_attention": 14}),
    "stable_video_diffusion": (stable_video_diffusion, {"geglu": 12, "group_norm_silu": 17, "temporal_attention": 4}),
    "modelscope": (modelscope, {"geglu": 9, "group_norm_silu": 41, "temporal_attention": 10}),
    "vae": (vae, {"group_norm_silu": 12}),
    "video_vae": (video_vae, {"group_norm_silu": 16}),
    "latte": (latte, {"geglu": 4, "temporal_attention": 2}),
}


def awake(model: nn.Module) -> nn.Module:
    """Zero-initialised layers would hide what comes before them."""
    for p in model.parameters():
        if not p.abs().max():
            nn.init.normal_(p, std=0.05)
    return model.eval()


def step(model: nn.Module, inputs: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
    model.zero_grad()
    out = model(**inputs)[0]
    out.square().mean().backward()
    return out.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def built(name: str) -> tuple[nn.Module, dict[str, Any]]:
    torch.manual_seed(0)
    model, inputs = MODELS[name][0]()
    return awake(model), inputs()


def patched(name: str) -> tuple[nn.Module, dict[str, Any], Tensor]:
    """A patched model, inputs, and what the plain one made of them."""
    model, given = built(name)
    with torch.no_grad():
        expected = model(**given)[0]
    assert vf.patch(model).count > 0
    return model, given, expected


@torch.no_grad()
def assert_same(model: nn.Module, given: dict[str, Any], expected: Tensor) -> None:
    assert (model(**given)[0] - expected).norm() <= 1e-5 * expected.norm()


def block() -> tuple[ResnetBlock2D, Tensor, Tensor]:
    torch.manual_seed(0)
    module, x = ResnetBlock2D(in_channels=32, temb_channels=None), torch.randn(2, 32, 6, 6)
    return module, x, module(x, None).detach()
