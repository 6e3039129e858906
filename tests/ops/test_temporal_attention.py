"""Temporal attention: every number of frames, more positions than a CUDA grid axis has, layouts, hand-over."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import vdiff_fast as vf
from tests.checks import assert_as_close_as_eager, fresh, relative_error, run
from vdiff_fast import _library
from vdiff_fast._spec import Sample, randn
from vdiff_fast.ops.temporal_attention.spec import SPEC, options

FRAMES = (1, 2, 5, 8, 14, 16, 17, 25, 32)
needs_cpu_kernels = pytest.mark.skipif(_library.CPU.reason is not None, reason=str(_library.CPU.reason))


def by_sdpa(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
    """torch's attention with the permutes it needs, (B, T, S, heads, d)."""
    q, k, v = (x.permute(0, 2, 3, 1, 4) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias).permute(0, 3, 1, 2, 4)


def with_threads(call: Callable[[], Any]) -> list[Any]:
    """What `call` returns with one thread and with two."""
    results, before = [], torch.get_num_threads()
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            results.append(call())
    finally:
        torch.set_num_threads(before)
    return results


@pytest.mark.parametrize("backend", ["reference", pytest.param("cpu", marks=needs_cpu_kernels)])
@pytest.mark.parametrize("frames", FRAMES)
def test_agrees_with_torch_in_float64(frames: int, backend: str) -> None:
    generator = torch.Generator().manual_seed(frames)
    tokens = [
        torch.randn(1, frames, 3, 2, 24, generator=generator, dtype=torch.float64, requires_grad=True) for _ in range(3)
    ]
    bias = torch.randn(2, frames, frames, generator=generator, dtype=torch.float64, requires_grad=True)
    cotangent = torch.randn(1, frames, 3, 2, 24, generator=generator, dtype=torch.float64)
    expected = by_sdpa(*tokens, bias)
    wanted = torch.autograd.grad(expected, (*tokens, bias), cotangent)
    with vf.use_backend(backend, ops=["temporal_attention"]):
        for dtype, tolerance in ((torch.float64, 1e-13), (torch.float32, 2e-6)):
            inputs = [x.detach().to(dtype).requires_grad_() for x in (*tokens, bias)]
            out = vf.ops.temporal_attention(*inputs[:3], bias=inputs[3])
            gradients = torch.autograd.grad(out, inputs, cotangent.to(dtype))
            for actual, exact in zip((out, *gradients), (expected, *wanted)):
                assert relative_error(actual, exact) <= tolerance


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("frames", [33, 48, 64])
@pytest.mark.parametrize(
    "backend", [pytest.param("cpu", marks=needs_cpu_kernels), pytest.param("cuda", marks=pytest.mark.gpu)]
)
def test_every_option_with_more_than_32_frames(backend: str, frames: int, dtype: torch.dtype) -> None:
    """What Triton's registers do not hold, and the contract's samples therefore lack."""
    device = torch.device("cuda" if backend == "cuda" else "cpu")
    tokens = [randn((2, frames, 3, 2, 40), device, dtype, seed=i) for i in range(3)]
    sample = Sample("options", tuple(tokens), options(frames, 2, 40, 2, device, dtype))
    with vf.use_backend(backend, ops=["temporal_attention"]):
        assert_as_close_as_eager(SPEC, sample, dtype)


@pytest.mark.parametrize("keys", [3, 16, 50, 64, 65])
def test_context_shared_by_all_positions_equals_spatial_cross_attention(keys: int) -> None:
    """Every frame and position attends to one context; 65 tokens are handed over, 50 are padded to a divisor."""
    q = torch.randn(2, 4, 16, 2, 8, requires_grad=True)
    k, v = (torch.randn(2, keys, 1, 2, 8, requires_grad=True) for _ in range(2))
    cotangent = torch.randn(2, 4, 16, 2, 8)
    out = vf.ops.temporal_attention(q, k, v)
    flat = (q.flatten(1, 2), k.squeeze(2), v.squeeze(2))
    expected = vf.ops.spatial_attention(*(x.unsqueeze(1) for x in flat)).view_as(q)
    torch.testing.assert_close(out, expected)
    gradients = torch.autograd.grad(out, (q, k, v), cotangent)
    wanted = torch.autograd.grad(expected, (q, k, v), cotangent)
    for actual, exact in zip(gradients, wanted):
        torch.testing.assert_close(actual, exact, rtol=1e-4, atol=1e-5)


@needs_cpu_kernels
def test_a_context_reaches_the_kernel_for_any_number_of_tokens() -> None:
    q, context = torch.randn(1, 1, 67, 1, 8), torch.randn(1, 50, 1, 1, 8)
    with vf.use_backend("cpu", ops=["temporal_attention"]):
        vf.ops.temporal_attention(q, context, context)
        long = torch.randn(1, 65, 1, 1, 8)
        with pytest.raises(vf.BackendUnavailableError, match="a context of 65 tokens > 64"):
            vf.ops.temporal_attention(q, long, long)


@needs_cpu_kernels
@pytest.mark.parametrize(("keys", "heads", "d"), [(1, 1, 8), (13, 3, 40), (64, 2, 128)])
def test_many_blocks_of_tokens_sum_the_gradients_of_a_context(keys: int, heads: int, d: int) -> None:
    """More tokens than a block and a range hold, an odd rest, a hidden key, norms; any number of threads."""
    shapes = [(2, 3, 1111, heads, d), *2 * [(2, keys, 1, heads, d)]]
    tokens = [randn(shape, torch.device("cpu"), torch.float32, seed=i) for i, shape in enumerate(shapes)]
    norm = options(1, heads, d, 1, torch.device("cpu"), torch.float32)["qk_norm"]
    mask = torch.arange(keys).expand(2, keys) != keys // 2 + 1
    sample = Sample("context", tuple(tokens), {"mask": mask, "qk_norm": norm})
    with vf.use_backend("cpu", ops=["temporal_attention"]):
        assert_as_close_as_eager(SPEC, sample, torch.float32)
        results = with_threads(lambda: run(SPEC.function, fresh(sample), torch.float32))
    for a, b in zip(*(outputs + gradients for outputs, gradients in results)):
        assert torch.equal(a, b)


@needs_cpu_kernels
def test_more_positions_and_heads_than_65535() -> None:
    """70,000 positions x 8 heads, T = 16, d = 8; 100 positions are read 700 times over, without memory of their own."""
    few = [torch.randn(1, 16, 100, 8, 8, dtype=torch.bfloat16) for _ in range(3)]
    many = [x.expand(700, -1, -1, -1, -1).requires_grad_() for x in few]
    few = [x.requires_grad_() for x in few]
    with vf.use_backend("cpu", ops=["temporal_attention"]):
        out, expected = vf.ops.temporal_attention(*many), vf.ops.temporal_attention(*few)
        assert torch.equal(out, expected.expand_as(out))
        cotangent = torch.randn_like(expected)
        gradients = torch.autograd.grad(out, many, cotangent.expand_as(out))
        wanted = torch.autograd.grad(expected, few, cotangent)
    for actual, exact in zip(gradients, wanted):
        assert torch.equal(actual, exact.expand_as(actual))


def test_one_packed_gradient_equals_the_three_apart() -> None:
    qkv = torch.randn(2, 5, 7, 3, 2, 16, requires_grad=True)
    cotangent = torch.randn(2, 5, 7, 2, 16)
    packed = vf.ops.temporal_attention_qkv(qkv, causal=True)
    apart = vf.ops.temporal_attention(*qkv.unbind(3), causal=True)
    assert torch.equal(packed, apart)
    (gradient,) = torch.autograd.grad(packed, qkv, cotangent)
    (expected,) = torch.autograd.grad(apart, qkv, cotangent)
    assert gradient.is_contiguous()
    torch.testing.assert_close(gradient, expected)


def test_hidden_keys_do_not_matter_and_blind_queries_give_zero() -> None:
    q, k, v = (torch.randn(1, 6, 2, 2, 8) for _ in range(3))
    mask = torch.tensor([[False, True, True, False, True, True]])
    out = vf.ops.temporal_attention(q, k, v, mask=mask, causal=True)
    k[:, 3], v[:, 3] = 1e4, math.nan
    k[:, 0], v[:, 0] = 1e4, 1e4
    again = vf.ops.temporal_attention(q, k, v.nan_to_num(7.0), mask=mask, causal=True)
    assert torch.equal(out, again)
    assert not out[:, 0].any()


def test_large_logits_do_not_overflow() -> None:
    q, k, v = (torch.randn(1, 8, 2, 1, 8) for _ in range(3))
    out = vf.ops.temporal_attention(1e4 * q, 1e4 * k, v)
    torch.testing.assert_close(out, by_sdpa(1e4 * q, 1e4 * k, v))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_autocast_keeps_the_dtype_and_bias_gradients_are_float32(dtype: torch.dtype) -> None:
    qkv = torch.randn(1, 4, 3, 3, 2, 8, dtype=dtype, requires_grad=True)
    bias = torch.zeros(2, 4, 4, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        out = vf.ops.temporal_attention_qkv(qkv, bias=bias)
    assert out.dtype == dtype
    out.sum().backward()
    assert [x.grad.dtype for x in (qkv, bias) if x.grad is not None] == [dtype, torch.float32]


@needs_cpu_kernels
def test_more_frames_than_the_kernel_holds_are_handed_over() -> None:
    q, k, v = (torch.randn(1, 65, 2, 2, 8) for _ in range(3))
    torch.testing.assert_close(vf.ops.temporal_attention(q, k, v), by_sdpa(q, k, v))
    with (
        vf.use_backend("cpu", ops=["temporal_attention"]),
        pytest.raises(vf.BackendUnavailableError, match="65 frames > 64"),
    ):
        vf.ops.temporal_attention(q, k, v)


@needs_cpu_kernels
def test_the_answer_does_not_depend_on_the_number_of_threads() -> None:
    qkv = torch.randn(2, 16, 50, 3, 4, 32, requires_grad=True)
    bias = torch.randn(4, 16, 16, requires_grad=True)

    def call() -> tuple[Tensor, ...]:
        out = vf.ops.temporal_attention_qkv(qkv, bias=bias)
        return out, *torch.autograd.grad(out.square().sum(), (qkv, bias))

    for a, b in zip(*with_threads(call)):
        assert torch.equal(a, b)


def test_samples_of_one_position_share_a_program() -> None:
    """A model that reshapes to (B * S, T, C) has one position a sample; a program holds several."""
    pytest.importorskip("triton")
    from vdiff_fast.ops.temporal_attention import triton
    from vdiff_fast.ops.temporal_attention.config import tile_config

    config = tile_config(16, 64, 2, backward=False, fused=False)
    q, mask = torch.empty(4096, 16, 1, 8, 64), torch.ones(4096, 16, dtype=torch.bool)
    assert config.positions > 1
    assert triton._programs(config, triton._as_positions(None, q)[0]) == 4096 // config.positions * 8
    assert triton._programs(config, triton._as_positions(mask, q)[0]) == 4096 * 8
