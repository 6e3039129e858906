"""What is special to sampler_step: its noise, its missing terms, guidance far from zero, one graph for every step."""

from __future__ import annotations

import pytest
import torch

import vdiff_fast as vf
from vdiff_fast import _library
from vdiff_fast.ops.sampler_step import columns

BACKENDS = [
    "reference",
    *(["cpu"] if _library.CPU.reason is None else []),
    pytest.param("triton", marks=pytest.mark.interpreter),
]
SHAPES = [(3, 5), (2, 3, 37), (3, 4, 6, 5), (2, 3, 4, 5, 6), (1, 5, 1, 9, 4), (2, 1, 3, 33)]


def table(**values: float) -> torch.Tensor:
    row = torch.zeros(2, columns.COLUMNS)
    for name, value in values.items():
        row[:, getattr(columns, name)] = value
    return row


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> str:
    vf.use_backend(request.param, ops=["sampler_step"])
    return request.param


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("stream", [None, 7])
def test_its_noise_is_that_of_noise(backend: str, shape: tuple[int, ...], last: bool, stream: int | None) -> None:
    if last and len(shape) not in (4, 5):
        shape = (2, 3, 4, 5)
    x = torch.zeros(shape)
    x = vf.layout.channels_last(x) if last else x
    drawn, _ = vf.ops.sampler_step(x, x, table(NOISE=1.0), 1, seed=-3, sample_offset=9, stream=stream)
    expected = vf.ops.noise(shape, -3, sample_offset=9, stream=2 if stream is None else stream)
    assert torch.equal(drawn, expected)
    assert backend == "reference" or drawn.stride() == x.stride()


@pytest.mark.parametrize("missing", ["NOISE", "PREVIOUS"])
@pytest.mark.parametrize("clip", [None, 1.0, "dynamic"])
def test_a_missing_term_is_nan_where_values_cannot_be_read(
    backend: str, missing: str, clip: float | str | None
) -> None:
    """Traced code, like a GPU, cannot look at the row."""
    torch._dynamo.reset()
    step = torch.compile(vf.ops.sampler_step, fullgraph=True, backend="aot_eager")
    x, rows = torch.ones(2, 6), table(X=1.0, X0_X=1.0)
    assert step(x, x, rows, 0, clip=clip)[0].isfinite().all()
    rows[0, getattr(columns, missing)] = 0.1
    assert step(x, x, rows, 0, clip=clip)[0].isnan().all()
    assert step(x, x, rows, 2, clip=clip)[0].isnan().all()


@pytest.mark.parametrize("clip", [1.0, "dynamic"])
def test_clipping_keeps_a_nan(backend: str, clip: float | str) -> None:
    x = torch.randn(3, 40)
    x[1, 3] = torch.nan
    x_prev, x0 = vf.ops.sampler_step(x, x, table(X0_X=1.0, X0=1.0), 0, clip=clip)
    assert x0[1, 3].isnan()
    assert x_prev[1, 3].isnan()
    assert x0[[0, 2]].isfinite().all()


def test_dynamic_threshold_is_the_quantile(backend: str) -> None:
    x = torch.stack([3 * torch.randn(4001), 0.1 * torch.randn(4001)])
    _, x0 = vf.ops.sampler_step(x, x, table(X0_X=1.0), 0, clip="dynamic", dynamic_ratio=0.9)
    limit = torch.quantile(x.abs(), 0.9, dim=1).clamp(min=1)
    torch.testing.assert_close(x0, x.clamp(-limit[:, None], limit[:, None]) / limit[:, None])
    assert torch.equal(x0[1], x[1])


def test_rescaled_guidance_with_a_mean_far_from_zero(backend: str) -> None:
    """Deviation 0.1 around 10,000: a sum of squares would lose it."""
    torch.manual_seed(0)
    cond, uncond = 10_000 + 0.1 * torch.randn(2, 2, 3, 20, 30)
    rows, x = table(X0_Y=1.0, GUIDANCE=4.0), torch.zeros(2, 3, 20, 30)
    _, x0 = vf.ops.sampler_step(x, cond, rows, 0, uncond=uncond, guidance_rescale=1.0)
    guided = uncond + 4 * (cond - uncond)
    axes = (1, 2, 3)
    ratio = cond.double().std(dim=axes, keepdim=True) / guided.double().std(dim=axes, keepdim=True)
    torch.testing.assert_close(x0.double(), guided.double() * ratio, rtol=2e-6, atol=0)


def test_a_gradient_takes_the_reference() -> None:
    x = torch.randn(2, 3, 4, requires_grad=True)
    x_prev, _ = vf.ops.sampler_step(x, x, table(X=0.5, X0=0.25, X0_X=2.0), 0)
    x_prev.sum().backward()
    torch.testing.assert_close(x.grad, torch.ones_like(x))
    with torch.no_grad():
        assert not vf.ops.sampler_step(x, x, table(X=0.5), 0)[0].requires_grad


@pytest.mark.skipif(_library.CPU.reason is not None, reason=str(_library.CPU.reason))
def test_a_kernel_asked_for_by_name_refuses_a_gradient() -> None:
    x = torch.randn(2, 3, requires_grad=True)
    vf.use_backend("cpu", ops=["sampler_step"])
    with pytest.raises(vf.BackendUnavailableError, match="no gradient of x"):
        vf.ops.sampler_step(x, x, table(X=1.0), 0)


def test_any_strides_and_dtypes_of_the_others(backend: str) -> None:
    x, prediction, previous = torch.randn(3, 2, 4, 5, 6)
    rows = table(X=0.3, X0_X=0.7, X0_Y=-0.2, X0=0.9, PREVIOUS=0.5)
    expected = vf.ops.sampler_step(x, prediction, rows, 0, previous=previous)
    moved = prediction.contiguous(memory_format=torch.channels_last)
    strided = torch.stack([previous.double()] * 2, dim=-1)[..., 0]
    actual = vf.ops.sampler_step(x, moved, rows, 0, previous=strided)
    for a, e in zip(actual, expected):
        torch.testing.assert_close(a, e, rtol=1e-6, atol=1e-6)
        assert a.stride() == x.stride()


def test_one_graph_serves_every_step_and_seed(backend: str) -> None:
    torch._dynamo.reset()
    compiled = torch.compile(vf.ops.sampler_step, fullgraph=True, backend="aot_eager")
    x, prediction = torch.randn(2, 2, 3, 8)
    rows, step = table(X=0.5, X0=0.2, X0_X=1.0, X0_Y=0.3, NOISE=0.4), torch.arange(2)
    compiled(x, prediction, rows, step[0], seed=torch.tensor(1))
    with torch._dynamo.config.patch(error_on_recompile=True):
        for seed in (2, 3, 4):
            for i in (0, 1):
                actual = compiled(x, prediction, rows, step[i], seed=torch.tensor(seed))
                expected = vf.ops.sampler_step(x, prediction, rows, i, seed=seed)
                torch.testing.assert_close(actual, expected)
