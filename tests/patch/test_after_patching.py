"""What is done to a model after it was patched works, or is reported by the next patch."""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import vdiff_fast as vf
from tests.patch.models import MODELS, assert_same, block, built, patched, step

pytest.importorskip("diffusers", reason="needs diffusers")

from diffusers.models.attention import FreeNoiseTransformerBlock
from diffusers.models.attention_processor import Attention, AttnProcessor
from diffusers.pipelines.free_noise_utils import AnimateDiffFreeNoiseMixin

from vdiff_fast import _dispatch
from vdiff_fast.patch.fused_class import is_fused

each_model = pytest.mark.parametrize("name", MODELS)


# Layers that are called apart


class _ScaleShift(nn.Module):
    """guided-diffusion's use of its layers: norm, scale and shift, then the rest."""

    def __init__(self) -> None:
        super().__init__()
        self.out_layers = nn.Sequential(nn.GroupNorm(4, 8), nn.SiLU(), nn.Conv2d(8, 8, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.out_layers[1:](self.out_layers[0](x) * 1.5 + 0.5)


def test_a_norm_that_is_called_alone_gives_the_norm() -> None:
    torch.manual_seed(0)
    model, x = _ScaleShift(), torch.randn(2, 8, 6, 6, requires_grad=True)
    expected = model(x)
    vf.patch(model)
    assert torch.equal(model(x), expected)
    layers = [h := x, *(h := layer(h) for layer in model.out_layers)]
    assert torch.equal(layers[1], nn.functional.group_norm(x, 4, *model.out_layers[0].parameters()))


@each_model
def test_every_layer_alone_gives_what_it_gave(name: str) -> None:
    """Norms and activations of a patched model are the model's own."""
    model, _ = built(name)
    before = {n: type(m) for n, m in model.named_modules() if isinstance(m, (nn.GroupNorm, nn.SiLU))}
    vf.patch(model)
    assert {n: type(m) for n, m in model.named_modules() if isinstance(m, (nn.GroupNorm, nn.SiLU))} == before


# Hooks, offloading, adapters, quantisation


@each_model
def test_a_hook_on_any_module_fires_and_changes_nothing(name: str) -> None:
    plain, given = built(name)
    model, _, expected = patched(name)
    calls: list[str] = []

    def called(network: nn.Module) -> set[str]:
        calls.clear()
        handles = [
            module.register_forward_hook(lambda *_, path=path: calls.append(path))
            for path, module in network.named_modules()
        ]
        assert_same(network, given, expected)
        for handle in handles:
            handle.remove()
        return set(calls)

    assert called(model) == called(plain)


@pytest.mark.parametrize("part", ["norm1", "norm2", "nonlinearity", "conv1"])
def test_a_hook_on_one_part_of_a_block_fires(part: str) -> None:
    module, x, expected = block()
    vf.patch(module)
    calls = []
    handle = getattr(module, part).register_forward_hook(lambda *_: calls.append(1))
    torch.testing.assert_close(module(x, None), expected)
    assert calls
    handle.remove()
    fused = [choice for choice in _dispatch.observed(lambda: module(x, None)) if choice.op == "group_norm_silu"]
    assert len(fused) == 2


@each_model
def test_offloaded_after_patching(name: str) -> None:
    accelerate = pytest.importorskip("accelerate", reason="needs accelerate")
    model, given, expected = patched(name)
    accelerate.cpu_offload(model, torch.device("cpu"))
    assert_same(model, given, expected)


def test_a_forward_that_was_kept_outlives_the_patch() -> None:
    """accelerate keeps the bound forward of the class that it found."""
    hooks = pytest.importorskip("accelerate.hooks", reason="needs accelerate")
    module, x, expected = block()
    vf.patch(module)
    hooks.add_hook_to_module(module, hooks.ModelHook())
    vf.unpatch(module)
    assert torch.equal(module(x, None), expected)
    hooks.remove_hook_from_module(module)
    assert torch.equal(module(x, None), expected)


@each_model
@pytest.mark.parametrize("first", ["adapters", "patch"])
def test_adapters_before_and_after(name: str, first: str) -> None:
    peft = pytest.importorskip("peft", reason="needs peft")
    model, given = built(name)
    # AnimateDiff calls its proj_in and proj_out by `input=`, which peft's layers do not take.
    layers = [n for n, m in model.named_modules() if isinstance(m, (nn.Linear, nn.Conv2d))]
    targets = [n for n in layers if not n.endswith(("proj_in", "proj_out"))]
    config = peft.LoraConfig(r=2, target_modules=targets, init_lora_weights=False)

    def adapt(network: nn.Module) -> nn.Module:
        torch.manual_seed(1)
        peft.inject_adapter_in_model(config, network)
        return network

    plain = adapt(copy.deepcopy(model))
    exact = copy.deepcopy(plain).double()
    if first == "patch":
        vf.patch(model)
    adapt(model)
    if first == "adapters":
        assert vf.patch(model).count > 0
    wide = {key: value.double() if value.is_floating_point() else value for key, value in tensors(given).items()}
    expected, eager, fused = (
        step(network, kwargs) for network, kwargs in ((exact, given | wide), (plain, given), (model, given))
    )
    assert fused[1].keys() == eager[1].keys() == expected[1].keys()
    errors = [distance(result, expected) for result in (fused, eager)]
    # One draw of roundings through a whole network: 0.9 to 2.7 times eager's over three seeds and two thread counts. An
    # adapter that is passed by is off by its whole contribution.
    assert errors[0] <= 4 * errors[1]


def tensors(given: dict[str, Any]) -> dict[str, Tensor]:
    return {key: value for key, value in given.items() if isinstance(value, Tensor)}


def distance(result: tuple[Tensor, dict[str, Tensor]], exact: tuple[Tensor, dict[str, Tensor]]) -> float:
    """Relative, over the output and all gradients, so that none of them is a yardstick of its own rounding."""
    pairs = [(result[0], exact[0]), *((result[1][path], gradient) for path, gradient in exact[1].items())]
    squares = torch.tensor([[float((a - b).square().sum()), float(b.square().sum())] for a, b in pairs]).sum(0)
    return float((squares[0] / squares[1]).sqrt())


def test_quantised_after_patching() -> None:
    model, given, expected = patched("latte")
    with torch.no_grad():
        actual = torch.ao.quantization.quantize_dynamic(model, {nn.Linear})(**given)[0]
    assert (actual - expected).norm() < 0.1 * expected.norm()


# Norms of another class


class _Halved(nn.GroupNorm):
    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(x) / 2


class _InFloat32(nn.GroupNorm):
    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(x.float()).type(x.dtype)


@pytest.mark.parametrize("part", ["norm1", "norm2"])
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_a_norm_of_another_class_is_called(part: str, after: bool) -> None:
    module, x, _ = block()
    if after:
        vf.patch(module)
    setattr(module, part, _Halved(32, 32))
    report = vf.patch(module)
    assert report.patched == {}
    assert report.left["its norm is _Halved, not GroupNorm's forward with a cast"]
    assert list(report.lost.values()) == ([("(the model)",)] if after else [])
    plain = block()[0]
    setattr(plain, part, _Halved(32, 32))
    torch.testing.assert_close(module(x, None), plain(x, None))


def test_a_norm_that_only_casts_is_taken() -> None:
    module, x, expected = block()
    for part in ("norm1", "norm2"):
        getattr(module, part).__class__ = _InFloat32
    assert vf.patch(module).count == 1
    torch.testing.assert_close(module(x, None), expected, rtol=1e-5, atol=1e-5)


# Attention processors


def _image_adapter(unet: Any) -> dict[str, Any]:
    """The state of an IP-Adapter with random weights."""
    width, state, number = unet.config.cross_attention_dim, {}, 1
    for path in unet.attn_processors:
        if path.endswith("attn1.processor") or "motion_modules" in path:
            continue
        channels = unet.get_submodule(path.removesuffix(".processor")).inner_dim
        for part in ("to_k_ip", "to_v_ip"):
            state[f"{number}.{part}.weight"] = torch.randn(channels, width) * 0.1
        number += 2
    projection = {"proj.weight": torch.randn(4 * width, 16) * 0.1, "proj.bias": torch.zeros(4 * width)}
    projection |= {"norm.weight": torch.ones(width), "norm.bias": torch.zeros(width)}
    return {"image_proj": projection, "ip_adapter": state}


def _two_models() -> tuple[Any, Any, dict[str, Any]]:
    plain, given = built("animatediff")
    model, _, _ = patched("animatediff")
    return plain, model, given


def test_an_image_adapter_after_patching() -> None:
    plain, model, given = _two_models()
    state = _image_adapter(plain)
    given["added_cond_kwargs"] = {"image_embeds": [torch.randn(len(given["encoder_hidden_states"]), 1, 16)]}
    for network in (plain, model):
        network._load_ip_adapter_weights([copy.deepcopy(state)])
    with torch.no_grad():
        assert_same(model, given, plain(**given)[0])


def test_the_default_processors_after_patching() -> None:
    model, given, expected = patched("animatediff")
    model.set_default_attn_processor()  # type: ignore[operator]
    assert all(type(processor) is AttnProcessor for processor in model.attn_processors.values())
    assert_same(model, given, expected)
    report = vf.patch(model)
    assert (report.patched, report.lost) == ({}, {})


def test_fused_projections_after_patching_are_reported_and_come_back() -> None:
    model, given, expected = patched("animatediff")
    model.fuse_qkv_projections()  # type: ignore[operator]
    assert_same(model, given, expected)
    report = vf.patch(model)
    assert len(report.lost["its processor is FusedAttnProcessor2_0"]) == 14
    assert "lost since" in str(report)
    model.unfuse_qkv_projections()  # type: ignore[operator]
    assert_same(model, given, expected)
    assert vf.patch(model).lost == {}
    assert vf.unpatch(model) > 0
    assert not any(is_fused(module) for module in model.modules())


def test_free_noise_after_patching_is_reported_and_patched_again() -> None:
    plain, model, given = _two_models()
    settings = {
        "_free_noise_context_length": 2,
        "_free_noise_context_stride": 1,
        "_free_noise_weighting_scheme": "flat",
    }
    for network in (plain, model):
        pipeline = SimpleNamespace(device=torch.device("cpu"), dtype=torch.float32, **settings)
        for part in (*network.down_blocks, network.mid_block, *network.up_blocks):
            AnimateDiffFreeNoiseMixin._enable_free_noise_in_block(pipeline, part)  # type: ignore[arg-type]
    assert any(isinstance(module, FreeNoiseTransformerBlock) for module in model.modules())
    with torch.no_grad():
        expected = plain(**given)[0]
    assert_same(model, given, expected)
    report = vf.patch(model)
    assert len(report.patched["temporal_attention"]) == 14
    assert report.lost == {}
    assert_same(model, given, expected)


def test_skipped_attention_scores_after_patching() -> None:
    """diffusers' skip-layer guidance looks at torch's attention inside the call."""
    layer_skip = pytest.importorskip("diffusers.hooks.layer_skip", reason="needs diffusers' hooks")
    attention = Attention(query_dim=32, heads=2, dim_head=16)
    x = torch.randn(3, 5, 32)
    outputs = []
    for network in (attention, copy.deepcopy(attention)):
        holder = _over_frames(network)
        if outputs:
            assert vf.patch(holder).count == 1
        hook = layer_skip.AttentionProcessorSkipHook(lambda *args, **kwargs: None, skip_attention_scores=True)
        layer_skip.HookRegistry.check_if_exists_or_initialize(network).register_hook(hook, "skip")
        outputs.append(network(x))
    assert torch.equal(*outputs)


def _over_frames(attention: Attention) -> nn.Module:
    class AnimateDiffTransformer3D(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.transformer_blocks = nn.ModuleList([nn.ModuleDict({"attn1": attention})])

    return AnimateDiffTransformer3D()
