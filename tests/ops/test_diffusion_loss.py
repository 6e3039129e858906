"""diffusion_loss: the weights of every target, the noise of q_sample, order of sums, saved bytes, compiled graphs."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch.nn import functional as F

import vdiff_fast as vf
from vdiff_fast.ops._common.cases.drawn_noise import channels_last
from vdiff_fast.ops._common.schedule import Tables

SCHEDULE = Tables.cosine(10)
T = torch.tensor([0, 3, 6, 9])
SHAPE = (4, 3, 2, 8, 8)


def _tensors() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(SHAPE, generator=generator), torch.randn(SHAPE, generator=generator)


def _loss(prediction: torch.Tensor, x0: torch.Tensor, t: torch.Tensor = T, **options: Any) -> torch.Tensor:
    return vf.ops.diffusion_loss(prediction, x0, t, SCHEDULE, **({"seed": 3} | options))


@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize("target", ["noise", "v", "x0", "flow"])
def test_min_snr_weighs_the_error_of_x0(target: str, backend: str) -> None:
    """Whatever is predicted, the weighted loss is min(snr, gamma) |error of x0|^2, here by its own route."""
    prediction, x0 = (t.double() for t in _tensors())
    a, b = (c.double().view(-1, 1, 1, 1, 1)[T] for c in _coefficients())
    noise = vf.ops.noise(SHAPE, 3, dtype=torch.float64)
    x_t = a * x0 + b * noise
    solve = {
        "noise": lambda y: (x_t - b * y) / a,
        "v": lambda y: (a * x_t - b * y) / (a * a + b * b),
        "x0": lambda y: y,
        "flow": lambda y: (x_t - b * y) / (a + b),
    }[target]
    snr = (a / b) ** 2
    expected = snr.flatten().clamp(max=5.0) * ((solve(prediction) - x0) ** 2).flatten(1).mean(1)
    with vf.use_backend(backend, ops=["diffusion_loss"]):
        actual = _loss(prediction, x0, target=target, weighting="min_snr", reduction="none")
    # The last step has zero terminal SNR, where a noise prediction says nothing of x0: its weight is the limit, 1.
    last = 3 if target == "noise" else 4
    torch.testing.assert_close(actual[:last], expected[:last], rtol=1e-5, atol=1e-12)
    limit = ((prediction - noise) ** 2)[3].mean() if target == "noise" else torch.zeros((), dtype=torch.float64)
    torch.testing.assert_close(actual[3], limit)


def _coefficients() -> tuple[torch.Tensor, torch.Tensor]:
    return SCHEDULE.sqrt_alphas_cumprod, SCHEDULE.sqrt_one_minus_alphas_cumprod


def test_the_noise_is_that_of_q_sample() -> None:
    _, x0 = _tensors()
    x_t = vf.ops.q_sample(x0, T, SCHEDULE, seed=3, sample_offset=7, stream=2)
    a, b = (c[T].view(-1, 1, 1, 1, 1) for c in _coefficients())
    loss = _loss((x_t - a * x0) / b, x0, sample_offset=7, stream=2)
    assert float(loss) < 1e-10


@pytest.mark.parametrize("kind", ["mse", "huber"])
def test_uniform_mean_is_the_loss_of_torch(kind: str) -> None:
    prediction, x0 = _tensors()
    noise = vf.ops.noise(SHAPE, 3)
    expected = F.mse_loss(prediction, noise) if kind == "mse" else F.huber_loss(prediction, noise, delta=0.7)
    torch.testing.assert_close(_loss(prediction, x0, kind=kind, delta=0.7), expected)


def test_threads_and_runs_do_not_change_a_bit() -> None:
    x0 = torch.randn((2, 3, 5, 64, 64), generator=torch.Generator().manual_seed(1))
    prediction, before = -x0, torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            leaf = prediction.clone().requires_grad_()
            loss = _loss(leaf, x0, T[:2], target="v")
            results.append((loss, torch.autograd.grad(loss, leaf)[0]))
    finally:
        torch.set_num_threads(before)
    for loss, gradient in results[1:]:
        assert torch.equal(loss, results[0][0])
        assert torch.equal(gradient, results[0][1])


def test_large_losses_are_summed_without_losing_small_ones() -> None:
    prediction = torch.full((1, 4, 4, 128, 128), 1e-3)
    prediction[0, 0, 0, 0, 0] = 3000.0
    loss = _loss(
        prediction, torch.zeros_like(prediction), T[:1], target="x0", noise=torch.zeros_like(prediction), seed=None
    )
    torch.testing.assert_close(loss.double(), prediction.double().square().mean(), rtol=1e-7, atol=0)


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_backward_twice_gives_the_same_gradient(scale: float) -> None:
    prediction, x0 = _tensors()
    prediction.requires_grad_()
    loss = scale * _loss(prediction, x0, target="v")
    first = torch.autograd.grad(loss, prediction, retain_graph=True)[0].clone()
    second = torch.autograd.grad(loss, prediction)[0]
    assert torch.equal(first, second)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_noise_is_saved(dtype: torch.dtype) -> None:
    """Of activations the prediction alone; the CPU's float32 beside it the gradient that its one pass wrote."""
    prediction, x0 = (t.to(dtype) for t in _tensors())
    saved: list[torch.Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        _loss(prediction.requires_grad_(), x0)
    small = 2 * SCHEDULE.timesteps + len(T) + 1
    activations = 2 if dtype == torch.float32 else 1
    assert sum(t.numel() for t in saved) <= activations * prediction.numel() + small


def test_nothing_to_average_is_nan() -> None:
    empty = torch.zeros(0, 3, 2, 2)
    for backend in ("reference", "cpu"):
        with vf.use_backend(backend, ops=["diffusion_loss"]):
            assert math.isnan(_loss(empty, empty, T[:0]))
            assert _loss(empty, empty, T[:0], reduction="none").shape == (0,)


def test_a_step_out_of_range_makes_that_sample_nan_while_compiling() -> None:
    torch._dynamo.reset()
    prediction, x0 = _tensors()
    compiled = torch.compile(_loss, fullgraph=True, backend="aot_eager")
    for target in ("noise", "x0"):
        loss = compiled(prediction, x0, torch.tensor([3, 10, -1, 0]), target=target, reduction="none")
        assert loss.isnan().tolist() == [False, True, True, False]


def test_layouts_agree() -> None:
    prediction, x0 = _tensors()
    plain = _loss(prediction, x0, target="v", reduction="none")
    for a, b in ((channels_last(prediction), channels_last(x0)), (channels_last(prediction), x0)):
        torch.testing.assert_close(_loss(a, b, target="v", reduction="none"), plain)


def test_training_follows_the_reference() -> None:
    """Forty steps of a small model: the fused losses are those of plain torch, and a resumed run repeats them."""
    runs = []
    for backend in ("reference", "cpu"):
        with vf.use_backend(backend, ops=["noise", "q_sample", "diffusion_loss"]):
            runs.append(_train(40))
    torch.testing.assert_close(runs[0], runs[1], rtol=1e-4, atol=1e-6)
    assert torch.equal(_train(40), runs[1])
    assert float(runs[1][-5:].mean()) < float(runs[1][:5].mean())


def _train(steps: int) -> torch.Tensor:
    torch.manual_seed(0)
    model = torch.nn.Conv3d(3, 3, 3, padding=1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2)
    x0, losses = torch.tanh(_tensors()[1]), []
    for step in range(steps):
        seed = torch.tensor(1000 + step)
        prediction = model(vf.ops.q_sample(x0, T, SCHEDULE, seed=seed))
        loss = vf.ops.diffusion_loss(prediction, x0, T, SCHEDULE, target="v", weighting="min_snr", seed=seed)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return torch.stack(losses)


@pytest.mark.parametrize("dynamic", [None, True])
def test_one_graph_serves_six_seeds(dynamic: bool | None) -> None:
    graphs = []

    def count(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> torch.fx.GraphModule:
        graphs.append(graph)
        return graph

    def call(seed: int | torch.Tensor) -> torch.Tensor:
        return _loss(prediction, x0, seed=seed)

    prediction, x0 = _tensors()
    for convert, most in ((torch.tensor, 1), (int, 1 if dynamic else 2)):
        torch._dynamo.reset()
        graphs.clear()
        compiled = torch.compile(call, backend=count, fullgraph=True, dynamic=dynamic)
        for seed in (11, 12, 13, 2**40, -5, 77):
            assert torch.equal(compiled(convert(seed)), call(seed))
        assert len(graphs) <= most
