"""Models of diffusers, small and with random weights: outputs and gradients before and after."""

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
from diffusers.models.attention_processor import Attention
from diffusers.models.resnet import ResnetBlock2D

from vdiff_fast.patch.diffusers_modules import FrameAttention, FusedResnetBlock2D

Inputs = Callable[[], dict[str, Any]]
FRAMES = 4


def _motion() -> tuple[nn.Module, Inputs]:
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


def _stable_video_diffusion() -> tuple[nn.Module, Inputs]:
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


def _modelscope() -> tuple[nn.Module, Inputs]:
    model = UNet3DConditionModel(
        sample_size=8, block_out_channels=(32, 64), layers_per_block=1, cross_attention_dim=32, attention_head_dim=16,
        down_block_types=("CrossAttnDownBlock3D", "DownBlock3D"), up_block_types=("UpBlock3D", "CrossAttnUpBlock3D"),
    )  # fmt: skip
    return model, lambda: {
        "sample": torch.randn(1, 4, FRAMES, 8, 8),
        "timestep": torch.tensor([5]),
        "encoder_hidden_states": torch.randn(1, 7, 32),
    }


def _vae() -> tuple[nn.Module, Inputs]:
    model = AutoencoderKL(
        block_out_channels=(32, 64), layers_per_block=1,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
    )  # fmt: skip
    return model, lambda: {"sample": torch.randn(2, 3, 16, 16)}


def _video_vae() -> tuple[nn.Module, Inputs]:
    model = AutoencoderKLTemporalDecoder(
        block_out_channels=(32, 64), layers_per_block=1, down_block_types=("DownEncoderBlock2D",) * 2
    )
    return model, lambda: {"sample": torch.randn(FRAMES, 3, 16, 16), "num_frames": FRAMES}


def _latte() -> tuple[nn.Module, Inputs]:
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
    "animatediff": (_motion, {"geglu": 11, "group_norm_silu": 9, "temporal_attention": 14}),
    "stable_video_diffusion": (_stable_video_diffusion, {"geglu": 12, "group_norm_silu": 17, "temporal_attention": 4}),
    "modelscope": (_modelscope, {"geglu": 9, "group_norm_silu": 41, "temporal_attention": 10}),
    "vae": (_vae, {"group_norm_silu": 12}),
    "video_vae": (_video_vae, {"group_norm_silu": 16}),
    "latte": (_latte, {"geglu": 4, "temporal_attention": 2}),
}


def _awake(model: nn.Module) -> nn.Module:
    """Zero-initialised layers would hide what comes before them."""
    for p in model.parameters():
        if not p.abs().max():
            nn.init.normal_(p, std=0.05)
    return model.eval()


def _step(model: nn.Module, inputs: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
    model.zero_grad()
    out = model(**inputs)[0]
    out.square().mean().backward()
    return out.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("name", MODELS)
def test_same_answer(name: str) -> None:
    build, counts = MODELS[name]
    torch.manual_seed(0)
    model, inputs = build()
    given, keys = inputs(), list(_awake(model).state_dict())
    before, gradients = _step(model, given)
    report = vf.patch(model)
    assert {op: len(names) for op, names in report.patched.items()} == counts
    assert report.left == {}
    assert list(model.state_dict()) == keys
    after, fused = _step(model, given)
    assert (after - before).norm() <= 1e-5 * before.norm()
    assert fused.keys() == gradients.keys()
    # The bias of a convolution before a norm has no gradient but rounding: the largest gradient is the yardstick.
    scale = max(float(g.norm()) for g in gradients.values())
    for parameter, gradient in gradients.items():
        assert (fused[parameter] - gradient).norm() <= 1e-5 * gradient.norm() + 1e-6 * scale, parameter
    assert vf.unpatch(model) >= report.count
    again, _ = _step(model, given)
    assert torch.equal(again, before)


@pytest.mark.parametrize("name", MODELS)
def test_no_further_off_in_bf16(name: str) -> None:
    """Norm and SiLU round once instead of twice."""
    torch.manual_seed(0)
    model, inputs = MODELS[name][0]()
    given = inputs()

    @torch.no_grad()
    def error(expected: Tensor) -> float:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return float((model(**given)[0].float() - expected).norm())

    with torch.no_grad():
        expected = _awake(model)(**given)[0]
    plain = error(expected)
    assert vf.patch(model).count > 0
    assert error(expected) <= 1.1 * plain


@pytest.mark.parametrize(
    ("options", "embedded"),
    [({"time_embedding_norm": "scale_shift"}, True), ({"up": True}, True), ({"down": True}, False), ({}, False)],
)
def test_every_kind_of_residual_block(options: dict[str, Any], embedded: bool) -> None:
    torch.manual_seed(0)
    block = ResnetBlock2D(in_channels=32, out_channels=64, temb_channels=16 if embedded else None, **options)
    x, temb = torch.randn(2, 32, 6, 6), torch.randn(2, 16) if embedded else None
    for mode in (block.train(), block.eval()):
        expected = mode(x, temb)
        assert vf.patch(block).count == 1
        assert type(block) is FusedResnetBlock2D
        torch.testing.assert_close(block(x, temb), expected, rtol=1e-5, atol=1e-5)
        vf.unpatch(block)


def test_another_activation_is_left() -> None:
    report = vf.patch(nn.ModuleDict({"block": ResnetBlock2D(in_channels=32, temb_channels=None, non_linearity="gelu")}))
    assert report.patched == {}
    assert report.left == {"its activation is GELU": ("block",)}


@pytest.mark.parametrize("frames", [1, 5, 64, 65])
def test_frame_attention_and_what_it_hands_on(frames: int) -> None:
    torch.manual_seed(0)
    attention = Attention(query_dim=32, heads=2, dim_head=16)
    x, mask = torch.randn(3, frames, 32), torch.zeros(3, 1, frames)
    mask[:, :, frames // 2 :] = -10000.0
    expected, masked = attention(x), attention(x, attention_mask=mask)
    crossed = attention(x, encoder_hidden_states=x.flip(1)[:, :2])
    attention.processor = FrameAttention(attention.processor)
    torch.testing.assert_close(attention(x), expected, rtol=1e-5, atol=1e-6)
    assert torch.equal(attention(x, attention_mask=mask), masked)
    assert torch.equal(attention(x, encoder_hidden_states=x.flip(1)[:, :2]), crossed)


def test_an_option_of_another_processor_is_handed_on() -> None:
    attention, x, regions = Attention(query_dim=32, heads=2, dim_head=16), torch.randn(3, 5, 32), torch.ones(4)
    seen: dict[str, Any] = {}

    def processor(attn: Attention, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        seen.update(kwargs)
        return hidden_states

    assert FrameAttention(processor)(attention, x, regions=regions) is x
    assert seen == {"regions": regions}


def test_a_head_that_the_kernels_lack() -> None:
    torch.manual_seed(0)
    model = LatteTransformer3DModel(
        num_attention_heads=2, attention_head_dim=20, in_channels=4, out_channels=8, num_layers=1, sample_size=8,
        cross_attention_dim=40, caption_channels=32, patch_size=2, video_length=FRAMES,
    )  # fmt: skip
    left = vf.patch(model).left
    assert left == {"heads of 20: not a multiple of 8 up to 128": ("temporal_transformer_blocks.0.attn1",)}
