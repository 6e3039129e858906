"""Models of diffusers, small and with random weights: outputs and gradients before and after."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import vdiff_fast as vf
from tests.patch.models import FRAMES, MODELS, awake, step

pytest.importorskip("diffusers", reason="needs diffusers")

from diffusers import LatteTransformer3DModel
from diffusers.models.attention_processor import Attention
from diffusers.models.resnet import ResnetBlock2D

from vdiff_fast.patch.diffusers_modules import attention_over_frames
from vdiff_fast.patch.fused_class import fused_class, is_fused
from vdiff_fast.patch.places import places


@pytest.mark.parametrize("name", MODELS)
def test_same_answer(name: str) -> None:
    build, counts = MODELS[name]
    torch.manual_seed(0)
    model, inputs = build()
    given, keys = inputs(), list(awake(model).state_dict())
    before, gradients = step(model, given)
    report = vf.patch(model)
    assert {op: len(names) for op, names in report.patched.items()} == counts
    left = {name for names in report.left.values() for name in names}
    assert left <= places(model).keys()
    assert report.served == len(places(model)) - len(left) > 0
    assert list(model.state_dict()) == keys
    after, fused = step(model, given)
    assert (after - before).norm() <= 1e-5 * before.norm()
    assert fused.keys() == gradients.keys()
    # The bias of a convolution before a norm has no gradient but rounding: the largest gradient is the yardstick.
    scale = max(float(g.norm()) for g in gradients.values())
    for parameter, gradient in gradients.items():
        assert (fused[parameter] - gradient).norm() <= 1e-5 * gradient.norm() + 1e-6 * scale, parameter
    assert vf.unpatch(model) >= report.count
    again, _ = step(model, given)
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
        expected = awake(model)(**given)[0]
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
        assert is_fused(block)
        torch.testing.assert_close(block(x, temb), expected, rtol=1e-5, atol=1e-5)
        vf.unpatch(block)


def test_another_activation_is_left() -> None:
    report = vf.patch(nn.ModuleDict({"block": ResnetBlock2D(in_channels=32, temb_channels=None, non_linearity="gelu")}))
    assert report.patched == {}
    assert report.left == {"its activation is GELU": ("block.norm1", "block.norm2", "block.nonlinearity")}


def _over_frames(attention: Attention) -> None:
    attention.__class__ = fused_class(type(attention), attention_over_frames)


@pytest.mark.parametrize("frames", [1, 5, 64, 65])
def test_attention_over_frames_and_what_it_hands_on(frames: int) -> None:
    torch.manual_seed(0)
    attention = Attention(query_dim=32, heads=2, dim_head=16)
    x, mask = torch.randn(3, frames, 32), torch.zeros(3, 1, frames)
    mask[:, :, frames // 2 :] = -10000.0
    expected, masked = attention(x), attention(x, attention_mask=mask)
    crossed = attention(x, encoder_hidden_states=x.flip(1)[:, :2])
    _over_frames(attention)
    torch.testing.assert_close(attention(x), expected, rtol=1e-5, atol=1e-6)
    assert torch.equal(attention(x, attention_mask=mask), masked)
    assert torch.equal(attention(x, encoder_hidden_states=x.flip(1)[:, :2]), crossed)


def test_another_processor_gets_all_it_is_given() -> None:
    attention, x, regions = Attention(query_dim=32, heads=2, dim_head=16), torch.randn(3, 5, 32), torch.ones(4)
    seen: dict[str, Any] = {}

    class Processor:
        def __call__(self, attn: Attention, hidden_states: Tensor, regions: Any = None, **kwargs: Any) -> Tensor:
            seen.update(kwargs, regions=regions)
            return hidden_states

    _over_frames(attention)
    attention.processor = Processor()
    assert attention(x, regions=regions) is x
    assert seen == {"regions": regions, "encoder_hidden_states": None, "attention_mask": None}


def test_a_head_that_the_kernels_lack() -> None:
    torch.manual_seed(0)
    model = LatteTransformer3DModel(
        num_attention_heads=2, attention_head_dim=20, in_channels=4, out_channels=8, num_layers=1, sample_size=8,
        cross_attention_dim=40, caption_channels=32, patch_size=2, video_length=FRAMES,
    )  # fmt: skip
    left = vf.patch(model).left
    assert left["heads of 20: not a multiple of 8 up to 128"] == ("temporal_transformer_blocks.0.attn1",)
