"""J v of both networks in x and t: against finite differences, frozen or not, compiled or not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

import vdiff_fast as vf
from tests.checks import relative_error
from tests.models.helpers import small_dit, small_unet, video

SHAPE = (2, 3, 2, 8, 8)
Denoise = Callable[[Tensor, Tensor], Tensor]
networks = pytest.mark.parametrize("make", [small_unet, small_dit])
frozen_or_not = pytest.mark.parametrize("frozen", [False, True], ids=["learned", "frozen"])


def _tiny(make: Callable[..., nn.Module]) -> nn.Module:
    """One level where there are levels: tracing takes most of the time."""
    one: dict[str, Any] = {"channels": (16,), "blocks": (1,), "temporal_conv": (False,)}
    one |= {"spatial_attention": (True,), "temporal_attention": (True,)}
    return make(num_classes=3, context_dim=8, **(one if make is small_unet else {}))


def _denoiser(model: nn.Module) -> Denoise:
    """With a class and a context, so that every branch is followed."""
    y, context = torch.tensor([0, 2]), torch.linspace(-1, 1, 2 * 4 * 8).reshape(2, 4, 8)
    dtype = next(model.parameters()).dtype
    return lambda x, t: model(x, t, y=y, context=context.to(dtype))


def _point(dtype: torch.dtype) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """x and t, and a tangent of each."""
    t, dt = torch.tensor([1.5, 7.25], dtype=dtype), torch.tensor([0.5, -1.0], dtype=dtype)
    return (video(SHAPE, dtype=dtype), t), (video(SHAPE, seed=1, dtype=dtype), dt)


def _dual(f: Denoise, inputs: tuple[Tensor, Tensor], tangents: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    with forward_ad.dual_level():
        x, t = (forward_ad.make_dual(a, b) for a, b in zip(inputs, tangents))
        value, tangent = forward_ad.unpack_dual(f(x, t))
    assert tangent is not None, "the tangent was dropped"
    return value, tangent


@networks
@frozen_or_not
@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_against_finite_differences(make: Callable[..., nn.Module], frozen: bool, backend: str) -> None:
    f = _denoiser(make(num_classes=3, context_dim=8).double().requires_grad_(not frozen))
    inputs, tangents = _point(torch.float64)
    step = 1e-4
    with torch.no_grad(), vf.use_backend("reference"):
        a, b, c, d = (f(*(x + s * step * v for x, v in zip(inputs, tangents))) for s in (-2, -1, 1, 2))
    wanted = (8 * (c - b) - (d - a)) / (12 * step)
    with vf.use_backend(backend):
        for way in (torch.func.jvp, _dual, torch.no_grad()(_dual)):
            assert relative_error(way(f, inputs, tangents)[1], wanted) < 1e-8


@networks
def test_gradients_of_each_sample_by_vmap(make: Callable[..., nn.Module]) -> None:
    """Per-sample gradients of the parameters, as torch.func takes them, equal those of a loop."""
    model = make(num_classes=3, context_dim=8).double()
    parameters = {name: p.detach() for name, p in model.named_parameters()}
    (x, t), _ = _point(torch.float64)

    def loss(parameters: dict[str, Tensor], x: Tensor, t: Tensor) -> Tensor:
        return torch.func.functional_call(model, parameters, (x[None], t[None])).square().mean()

    found = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0, 0))(parameters, x, t)
    for i in range(2):
        wanted = torch.autograd.grad(
            model(x[i, None], t[i, None]).square().mean(), list(model.parameters()), materialize_grads=True
        )
        for name, w in zip(parameters, wanted, strict=True):
            assert relative_error(found[name][i], w) < 1e-8, name


def _mean_flow_step(jvp: Callable[..., tuple[Tensor, Tensor]], model: nn.Module) -> list[Tensor]:
    """Value and tangent, and the gradients of a loss whose target is a tangent."""
    inputs, tangents = _point(torch.float32)
    value, tangent = jvp(*inputs, *tangents)
    loss = (value - (tangents[0] - tangent).detach()).square().mean()
    return [value, tangent, *torch.autograd.grad(loss, list(model.parameters()), materialize_grads=True)]


@networks
def test_compiled(make: Callable[..., nn.Module]) -> None:
    """torch.func.jvp inside torch.compile is one graph, and weights train through it."""
    model = _tiny(make)
    f = _denoiser(model)

    def jvp(x: Tensor, t: Tensor, v: Tensor, dt: Tensor) -> tuple[Tensor, Tensor]:
        return torch.func.jvp(f, (x, t), (v, dt))

    torch._dynamo.reset()
    compiled = torch.compile(jvp, fullgraph=True, backend="aot_eager")
    for found, wanted in zip(_mean_flow_step(compiled, model), _mean_flow_step(jvp, model), strict=True):
        assert relative_error(found, wanted) < 1e-5


@networks
def test_a_compiled_model_in_a_dual_level(make: Callable[..., nn.Module]) -> None:
    """Compiled for plain calls first: the level is seen, and the frozen model traced again with its tangents."""
    f = _denoiser(_tiny(make).requires_grad_(False))
    inputs, tangents = _point(torch.float32)
    torch._dynamo.reset()
    compiled = torch.compile(f, fullgraph=True, backend="aot_eager")
    plain = compiled(*inputs)
    for found, wanted in zip(_dual(compiled, inputs, tangents), _dual(f, inputs, tangents)):
        assert relative_error(found, wanted) < 1e-5
    torch.testing.assert_close(compiled(*inputs), plain)
