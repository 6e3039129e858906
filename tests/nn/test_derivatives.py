"""Derivatives beyond the first in reverse mode, of every module: against finite differences and plain torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

import vdiff_fast as vf
from tests.checks import relative_error
from vdiff_fast.nn.modulation import modulated, modulated_linear

STEP, TOLERANCE = 1e-4, 1e-8


@dataclass(frozen=True)
class Case:
    """A module, how it is called, and its inputs."""

    name: str
    module: nn.Module
    call: Callable[..., Tensor]
    inputs: tuple[Tensor, ...]

    def __call__(self, *inputs: Tensor) -> Tensor:
        return self.call(self.module, *inputs)


def _plain(module: nn.Module, *inputs: Tensor) -> Tensor:
    return module(*inputs)


def _projected(module: nn.Module, x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return modulated_linear(modulated(x, shift, scale), module)


def _of_modulated(module: nn.Module, x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return module(modulated(x, shift, scale))


def _cases() -> Iterator[Case]:
    torch.manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, dtype=torch.float64)

    video, tokens = draw(2, 16, 3, 4, 4).movedim(1, -1).contiguous().movedim(-1, 1), draw(2, 3, 4, 16)
    vectors = (draw(2, 16), draw(2, 16))
    yield Case("GroupNormSiLU", vf.nn.GroupNormSiLU(4, 16), _plain, (video,))
    adaptive = vf.nn.AdaGroupNormSiLU(4, 16, 8)
    yield Case("AdaGroupNormSiLU", adaptive, lambda m, x, e: m(x, e, per_frame=True), (video, draw(2, 8)))
    yield Case("RMSNormSiLU", vf.nn.RMSNormSiLU(16), _plain, (video,))
    yield Case("AdaLayerNorm", vf.nn.AdaLayerNorm(16, 8), _plain, (tokens, draw(2, 8)))
    yield Case("AdaLayerNormZero", vf.nn.AdaLayerNormZero(16), lambda m, x, e: m(x, e)[0], (tokens, draw(2, 16)))
    for norm, positions in (("group", "bias"), ("layer", "rope"), ("none", "none")):
        options: dict[str, Any] = {"norm": norm, "num_groups": 4, "qk_norm": norm == "layer"}
        over_time = vf.nn.TemporalAttention(16, 2, positions=positions, causal=norm == "group", **options)
        over_space = vf.nn.SpatialAttention(16, 2, positions="none" if norm == "group" else "rope", **options)
        yield Case(f"TemporalAttention-{norm}", over_time, _plain, (video,))
        yield Case(f"SpatialAttention-{norm}", over_space, _plain, (video,))
    yield Case("SpaceTimeAttention", vf.nn.SpaceTimeAttention(16, 2, mode="joint", num_groups=4), _plain, (video,))
    across = vf.nn.CrossAttention(16, 2, context_dim=8, num_groups=4, qk_norm=True)
    yield Case("CrossAttention", across, _plain, (video, draw(2, 5, 8)))
    yield Case("TokenCrossAttention", vf.nn.TokenCrossAttention(16, 2), _plain, (tokens, draw(2, 5, 16)))
    for axis in ("space", "time", "joint"):
        attention = vf.nn.TokenAttention(16, 2, axis, qk_norm=True)
        yield Case(f"TokenAttention-{axis}", attention, _of_modulated, (tokens, *vectors))
    yield Case("GELUMLP", vf.nn.GELUMLP(16, 32), _of_modulated, (tokens, *vectors))
    yield Case("modulated_linear", nn.Linear(16, 8), _projected, (tokens, *vectors))
    yield Case("TimestepEmbedding", vf.nn.TimestepEmbedding(16, 32), _plain, (9 * torch.rand(2, dtype=torch.float64),))
    yield Case("FrameConv2d", vf.nn.FrameConv2d(16, 8, 3, padding=1), _plain, (video,))
    yield Case("TemporalConv", vf.nn.TemporalConv(16, 8), _plain, (video,))
    yield Case("PatchEmbed", vf.nn.PatchEmbed(16, 8), _plain, (video,))


CASES = [pytest.param(case, id=case.name) for case in _cases()]


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> Case:
    """With every parameter awake."""
    case: Case = request.param
    generator = torch.Generator().manual_seed(1)
    for parameter in case.module.double().requires_grad_().parameters():
        parameter.data = 0.3 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    return case


def _tangents(case: Case) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(2)
    return tuple(torch.randn(x.shape, generator=generator, dtype=torch.float64) for x in case.inputs)


def _loss(case: Case) -> Callable[..., Tensor]:
    return lambda *inputs: case(*inputs).sin().sum()


@torch.no_grad()
def _difference(function: Callable[..., Tensor], inputs: tuple[Tensor, ...], tangents: tuple[Tensor, ...]) -> Tensor:
    """J v by central differences of fourth order."""
    a, b, c, d = (function(*(x + s * STEP * v for x, v in zip(inputs, tangents))) for s in (-2, -1, 1, 2))
    return (8 * (c - b) - (d - a)) / (12 * STEP)


@pytest.mark.parametrize("frozen", [False, True], ids=["learned", "frozen"])
def test_forward_mode(case: Case, frozen: bool) -> None:
    tangents, case_inputs = _tangents(case), case.inputs
    wanted = _difference(case, case_inputs, tangents)
    case.module.requires_grad_(not frozen)
    found = {"jvp": torch.func.jvp(case, case_inputs, tangents)[1]}
    for name in ("dual", "dual without gradients"):
        with forward_ad.dual_level(), torch.set_grad_enabled(name == "dual"):
            output = case(*(forward_ad.make_dual(x, v) for x, v in zip(case_inputs, tangents)))
            found[name] = forward_ad.unpack_dual(output).tangent
    for name, tangent in found.items():
        assert tangent is not None, f"{name}: the tangent was dropped"
        assert relative_error(tangent, wanted) < TOLERANCE, name


def _second(case: Case) -> list[Tensor]:
    leaves = [x.clone().requires_grad_() for x in case.inputs]
    parameters = list(case.module.parameters())
    loss = _loss(case)(*leaves)
    first = torch.autograd.grad(loss, leaves + parameters, create_graph=True, materialize_grads=True)
    total = torch.stack([g.sin().sum() for g in first]).sum()
    return list(torch.autograd.grad(total, leaves + parameters, materialize_grads=True))


def test_second_derivatives(case: Case) -> None:
    """Of inputs and parameters, those of the path that asks for the reference, which is torch's own graph."""
    found = _second(case)
    with vf.use_backend("reference"):
        wanted = _second(case)
    assert all(relative_error(f, w) < TOLERANCE for f, w in zip(found, wanted, strict=True))


def test_transforms_compose(case: Case) -> None:
    """Forward over reverse, reverse over forward, and vmap."""
    inputs, tangents, loss = case.inputs, _tangents(case), _loss(case)
    every = tuple(range(len(inputs)))
    with vf.use_backend("reference"):
        leaves = [x.clone().requires_grad_() for x in inputs]
        first = torch.autograd.grad(loss(*leaves), leaves, create_graph=True)
        along = torch.stack([(g * v).sum() for g, v in zip(first, tangents)]).sum()
        wanted = torch.autograd.grad(along, leaves)
    ways: tuple[Any, ...] = (
        torch.func.jvp(torch.func.grad(loss, every), inputs, tangents)[1],
        torch.func.grad(lambda *x: torch.func.jvp(loss, x, tangents)[1], every)(*inputs),
    )
    with forward_ad.dual_level():
        leaves = [x.clone().requires_grad_() for x in inputs]
        tangent = forward_ad.unpack_dual(loss(*(forward_ad.make_dual(x, v) for x, v in zip(leaves, tangents)))).tangent
        ways += (torch.autograd.grad(tangent, leaves, create_graph=True),)
    for found in ways:
        assert all(relative_error(f, w) < TOLERANCE for f, w in zip(found, wanted, strict=True))
    several = [torch.stack([x, -0.5 * x]) for x in inputs]
    looped = torch.stack([case(*(s[i] for s in several)) for i in range(2)])
    assert relative_error(torch.func.vmap(case)(*several), looped) < TOLERANCE
