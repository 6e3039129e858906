"""Attention modules: what they compute, what they refuse, and that they copy no activation."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile

import vdiff_fast as vf
from vdiff_fast import _dispatch, _library

COPIES = ("aten::clone", "aten::copy_", "aten::stack", "aten::cat", "aten::contiguous")


def video(channels: int = 32, frames: int = 4, height: int = 6, width: int = 5, batch: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(batch, channels, frames, height, width, generator=generator)
    return x.contiguous(memory_format=torch.channels_last_3d)


def activation_copies(call: Callable[[], None], elements: int) -> list[str]:
    """Copying operators on at least `elements` elements, but for addmm's bias and autocast's change of dtype."""
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as trace:
        call()
    found = []
    for event in trace.events():
        parent = event.cpu_parent.name if event.cpu_parent is not None else ""
        if event.name in COPIES and parent not in ("aten::addmm", "aten::addmm_", "aten::_to_copy"):
            sizes = [torch.Size(s).numel() for s in event.input_shapes if s and not isinstance(s[0], (list, tuple))]
            if sizes and max(sizes) >= elements:
                found.append(f"{event.name} {event.input_shapes} in {parent}")
    return found


def attention_by_hand(module: nn.Module, tokens: Tensor, bias: Tensor | None = None) -> Tensor:
    """tokens (N, L, C), normed -> (N, L, C) with torch's attention."""
    n, length, c = tokens.shape
    q, k, v = module.qkv(tokens).reshape(n, length, 3, module.heads, -1).permute(2, 0, 3, 1, 4)
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
    return module.proj(out.transpose(1, 2).reshape(n, length, c))


def test_temporal_attention_starts_as_the_identity_and_then_attends_over_frames() -> None:
    torch.manual_seed(0)
    module, x = vf.nn.TemporalAttention(32, 2, num_groups=8), video()
    assert torch.equal(module(x), x)
    nn.init.normal_(module.proj.weight, std=0.1)
    normed = F.group_norm(
        x.transpose(1, 2).flatten(0, 1), 8, module.norm_weight, module.norm_bias, module.eps
    )  # (B*T, C, H, W)
    tokens = normed.unflatten(0, (2, 4)).permute(0, 3, 4, 1, 2).reshape(-1, 4, 32)
    expected = attention_by_hand(module, tokens, module.position_bias(4))
    expected = expected.reshape(2, 6, 5, 4, 32).permute(0, 4, 3, 1, 2)
    torch.testing.assert_close(module(x), x + expected, rtol=1e-5, atol=1e-5)


def test_spatial_attention_attends_over_the_positions_of_a_frame() -> None:
    torch.manual_seed(0)
    module, x = vf.nn.SpatialAttention(32, 4, norm="layer"), video()
    tokens = F.layer_norm(x.permute(0, 2, 3, 4, 1), (32,)).reshape(8, 30, 32)
    expected = attention_by_hand(module, tokens).reshape(2, 4, 6, 5, 32).permute(0, 4, 1, 2, 3)
    torch.testing.assert_close(module(x), x + expected, rtol=1e-5, atol=1e-5)


def test_joint_attention_sees_other_frames_and_divided_needs_its_temporal_part() -> None:
    torch.manual_seed(0)
    for mode, sees in (("joint", True), ("divided", False)):
        module, x = vf.nn.SpaceTimeAttention(32, 2, mode=mode, norm="layer", positions="rope"), video()
        changed = x.clone()
        changed[:, :, 3] += torch.randn(32)[None, :, None, None]
        same = torch.equal(module(x)[:, :, 0], module(changed)[:, :, 0])
        assert same is not sees
        if module.time is not None:
            nn.init.normal_(module.time.proj.weight)
            assert not torch.equal(module(x)[:, :, 0], module(changed)[:, :, 0])


def test_interleaved_blocks_alternate() -> None:
    blocks = [vf.nn.SpaceTimeAttention(32, 2, mode="interleaved", index=i) for i in range(2)]
    assert [b.space is None for b in blocks] == [False, True]
    assert [b.time is None for b in blocks] == [True, False]


def test_cross_attention_reads_the_context_from_every_position() -> None:
    torch.manual_seed(0)
    module, x, context = vf.nn.CrossAttention(32, 4, context_dim=12, norm="layer"), video(), torch.randn(2, 7, 12)
    tokens = F.layer_norm(x.permute(0, 2, 3, 4, 1), (32,)).reshape(2, -1, 4 * 8)
    q = module.q(tokens).unflatten(-1, (4, 8)).transpose(1, 2)
    k, v = module.kv(context).unflatten(-1, (2, 4, 8)).permute(2, 0, 3, 1, 4)
    out = module.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(-2))
    expected = x + out.reshape(2, 4, 6, 5, 32).permute(0, 4, 1, 2, 3)
    torch.testing.assert_close(module(x, context), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.skipif(_library.CPU.reason is not None, reason=str(_library.CPU.reason))
@pytest.mark.parametrize(("length", "taken"), [(32, "temporal_attention"), (33, "spatial_attention")])
def test_a_short_context_takes_the_kernel_and_a_long_one_sdpa(length: int, taken: str) -> None:
    tokens, context = torch.randn(2, 4, 30, 32), torch.randn(2, length, 32)
    for module in (vf.nn.TokenCrossAttention(32, 4, qk_norm=True), vf.nn.CrossAttention(32, 4, context_dim=32)):
        call = (tokens, context) if isinstance(module, vf.nn.TokenCrossAttention) else (video(), context)
        choices = _dispatch.observed(lambda module=module, call=call: module(*call))
        assert {c.op for c in choices} & {"temporal_attention", "spatial_attention"} == {taken}


def test_relative_position_bias_depends_on_the_distance_alone() -> None:
    bias = vf.nn.RelativePositionBias(3, max_frames=6)
    table = bias(4)
    for t in range(4):
        for u in range(4):
            assert torch.equal(table[:, t, u], bias.weight[:, u - t + 5])


def test_rotary_logits_depend_on_the_distance_alone() -> None:
    tables = vf.nn.RotaryTables(16, axes=2, max_size=8)(8, 8)
    q, k = (torch.randn(16, generator=torch.Generator().manual_seed(i)).expand(1, 1, 64, 1, 16) for i in (0, 1))
    q, k = vf.ops.qk_norm_rope(q, k, rope=tables)
    logits = (q[0, 0, :, 0] @ k[0, 0, :, 0].T).reshape(8, 8, 8, 8)
    torch.testing.assert_close(logits[1, 2, 4, 3], logits[3, 5, 6, 6])
    assert not torch.allclose(logits[1, 2, 4, 3], logits[1, 2, 3, 4])


def test_rotary_tables_stay_float32_in_a_bfloat16_model() -> None:
    module = vf.nn.TemporalAttention(32, 2, positions="rope")
    before = module.rotary.cos.clone()
    assert torch.equal(module.to(torch.bfloat16).rotary.cos, before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["space", "cross"])
def test_attention_makes_no_layout_copy(kind: str, dtype: torch.dtype) -> None:
    """Forward and backward; an autocast's own casts are no layout copies."""
    torch.manual_seed(0)
    x = video(frames=4, height=16, width=16).requires_grad_()
    module: nn.Module
    if kind == "space":
        module, extra = vf.nn.SpatialAttention(32, 2, norm="layer"), ()
    else:
        module, extra = vf.nn.CrossAttention(32, 2, norm="layer", context_dim=8), (torch.randn(2, 3, 8),)
    gradient = torch.ones_like(x)

    def step() -> None:
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            y = module(x, *extra)
        y.backward(gradient.to(y.dtype))

    step()
    torch.use_deterministic_algorithms(False)
    assert activation_copies(step, x.numel()) == []


@pytest.mark.parametrize("autocast", [False, True])
def test_qkv_linear_is_a_linear_with_gradients_apart(autocast: bool) -> None:
    torch.manual_seed(0)
    linear, x = nn.Linear(24, 48), torch.randn(2, 5, 24, requires_grad=True)
    cotangents = [torch.randn(2, 5, 2, 8) for _ in range(3)]
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        parts = vf.nn.qkv_linear(x, linear.weight, linear.bias, 2)
        expected = linear(x).unflatten(-1, (3, 2, 8)).unbind(-3)
    inputs = (x, linear.weight, linear.bias)
    gradients = torch.autograd.grad(parts, inputs, [c.to(parts[0].dtype) for c in cotangents])
    wanted = torch.autograd.grad(expected, inputs, [c.to(parts[0].dtype) for c in cotangents])
    tolerance = 2e-2 if autocast else 1e-5
    for a, b in zip((*parts, *gradients), (*expected, *wanted)):
        assert a.dtype == b.dtype
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


def test_modules_compile_without_a_graph_break() -> None:
    torch.manual_seed(0)
    module = vf.nn.SpaceTimeAttention(32, 2, positions="rope", qk_norm=True, norm="layer")
    nn.init.normal_(module.time.proj.weight, std=0.1)
    x = video().requires_grad_()
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    results = []
    for call in (module, compiled):
        y = call(x)
        results.append((y, *torch.autograd.grad(y.square().sum(), (x, module.space.qkv.weight))))
    for a, b in zip(*results):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: vf.nn.TemporalAttention(30, 4), "30 channels are not divisible by 4 heads"),
        (
            lambda: vf.nn.RelativePositionBias(2, 8)(9),
            "9 frames > 8 learned positions; use sample_long or a RoPE model",
        ),
        (lambda: vf.nn.TemporalAttention(32, 2)(torch.zeros(1, 16, 2, 2, 2)), r"x must be \(B, 32, T, H, W\)"),
        (lambda: vf.nn.RotaryTables(8, max_size=4)(5), "5 positions > 4 of the rotary tables"),
        (lambda: vf.nn.SpaceTimeAttention(32, 2, mode="joint", causal=True), "mode is joint"),
        (
            lambda: vf.nn.CrossAttention(32, 2, context_dim=5)(video(), torch.zeros(2, 3, 4)),
            r"context must be \(2, L, 5\), got \(2, 3, 4\)",
        ),
        (lambda: vf.nn.qkv_linear(torch.zeros(2, 8), torch.zeros(20, 8), None, 2), "20 outputs are not 3 x 2 heads"),
    ],
)
def test_bad_input_is_named(call: Callable[[], object], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        call()
