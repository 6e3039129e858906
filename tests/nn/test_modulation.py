"""Adaptive layer norms, and projections that make their input again: torch's answers, fewer bytes."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import vdiff_fast as vf
from vdiff_fast.bench.measure import saved_bytes
from vdiff_fast.nn import GELUMLP, AdaLayerNorm, AdaLayerNormZero, qkv_linear
from vdiff_fast.nn.modulation import Modulated, gated_modulated, modulated, modulated_linear

SHAPE = (2, 3, 5, 24)


def draw(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).float().requires_grad_()


def over_tokens(vector: Tensor) -> Tensor:
    return vector[:, None, None]


def test_a_new_ada_layer_norm_is_layer_norm() -> None:
    norm, x = AdaLayerNorm(24, 8), draw(*SHAPE)
    torch.testing.assert_close(norm(x, draw(2, 8)), F.layer_norm(x, (24,), eps=1e-6))
    with pytest.raises(ValueError, match=r"normalized_shape is the width, got \(5, 24\)"):
        AdaLayerNorm((5, 24), 8)


def test_ada_layer_norm_modulates_by_its_projection() -> None:
    norm, x, embedding = AdaLayerNorm(24, 8, elementwise_affine=True), draw(*SHAPE), draw(2, 8, seed=1)
    for i, parameter in enumerate(norm.parameters()):
        nn.init.normal_(parameter, generator=torch.Generator().manual_seed(i))
    shift, scale = norm.projection(F.silu(embedding)).chunk(2, dim=-1)
    expected = F.layer_norm(x, (24,), norm.weight, norm.bias, 1e-6) * (1 + over_tokens(scale)) + over_tokens(shift)
    torch.testing.assert_close(norm(x, embedding), expected)


def test_ada_layer_norm_zero_has_the_vectors_of_a_block() -> None:
    norm, x, embedding = AdaLayerNormZero(24), draw(*SHAPE), draw(2, 24, seed=1)
    y, *vectors = norm(x, embedding)
    torch.testing.assert_close(y, F.layer_norm(x, (24,), eps=1e-6))
    assert all(torch.equal(v, torch.zeros(2, 24)) for v in vectors)
    nn.init.normal_(norm.linear.weight)
    y, gate, shift_2, scale_2, gate_2 = norm(x, embedding)
    expected = norm.linear(F.silu(embedding)).chunk(6, dim=-1)
    torch.testing.assert_close(
        y, F.layer_norm(x, (24,), eps=1e-6) * (1 + over_tokens(expected[1])) + over_tokens(expected[0])
    )
    torch.testing.assert_close((gate, shift_2, scale_2, gate_2), expected[2:])


def linear(source: Modulated, w: nn.Module) -> Tensor:
    return modulated_linear(source, w.fc1)


def mlp(source: Modulated, w: nn.Module) -> Tensor:
    return w(source)


def qkv(source: Modulated, w: nn.Module) -> Tensor:
    q, k, v = qkv_linear(source, w.fc1.weight, w.fc1.bias, 4)
    return q.sigmoid() * k.tanh() + v


@pytest.mark.parametrize("gated", [False, True], ids=["norm", "gated_norm"])
@pytest.mark.parametrize("dtype", [None, torch.bfloat16], ids=["fp32", "bf16_autocast"])
@pytest.mark.parametrize("project", [linear, mlp, qkv])
def test_projections_give_torchs_gradients(
    project: Callable[[Modulated, nn.Module], Tensor], dtype: torch.dtype | None, gated: bool
) -> None:
    torch.manual_seed(0)
    weights = GELUMLP(24, 96)
    inputs = [draw(*SHAPE), draw(*SHAPE, seed=1), *(draw(2, 24, seed=i) for i in (2, 3, 4))]

    def run() -> list[Tensor]:
        x, branch, gate, shift, scale = (v.to(dtype) if dtype else v for v in inputs)
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype is not None):
            source = gated_modulated(x, branch, gate, shift, scale) if gated else modulated(x, shift, scale)
            out = project(source, weights)
            total = out.float() + source.x.float() if project is mlp else out.float()
        wanted = [*(inputs if gated else [inputs[0], *inputs[3:]]), weights.fc1.weight, weights.fc1.bias]
        wanted += [weights.fc2.weight, weights.fc2.bias] if project is mlp else []
        cotangent = draw(*total.shape, seed=7).detach()
        return [out, *torch.autograd.grad(total, wanted, cotangent)]

    actual = run()
    with vf.use_backend("reference"):
        expected = run()
    tolerance = 1e-5 if dtype is None else 2e-2
    for a, e in zip(actual, expected):
        assert a.dtype == e.dtype
        assert (a - e).norm() <= tolerance * e.norm()


def test_a_projection_keeps_neither_its_input_nor_the_activation() -> None:
    weights, x, shift, scale = GELUMLP(24, 96), draw(*SHAPE), draw(2, 24), draw(2, 24, seed=1)

    def kept() -> int:
        return saved_bytes(lambda: weights(modulated(x, shift, scale)))

    def kept_by_reference() -> int:
        with vf.use_backend("reference"):
            return kept()

    tokens = x.numel() * x.element_size()
    # x and the hidden layer, against x, its norm, its modulation, the hidden layer and its activation.
    assert kept() < 5.5 * tokens
    assert kept_by_reference() > 10 * tokens
