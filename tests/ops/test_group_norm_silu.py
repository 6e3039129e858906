"""What is special to group_norm_silu: hard statistics, torch's own samples, what is saved, empty space, large units."""

from __future__ import annotations

import sys
import types
import unittest
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import vdiff_fast as vf
from tests.checks import assert_as_close_as_eager, relative_error
from vdiff_fast import _library
from vdiff_fast._spec import Sample
from vdiff_fast.ops.group_norm_silu.spec import SPEC

NATIVE = pytest.mark.skipif(_library.CPU.reason is not None, reason=_library.CPU.reason or "")
BACKENDS = [
    pytest.param("reference", id="reference"),
    pytest.param("cpu", id="cpu", marks=NATIVE),
    pytest.param("triton", id="triton", marks=pytest.mark.interpreter),
]


def _layouts(x: Tensor) -> Iterator[Tensor]:
    yield x
    yield x.movedim(1, -1).contiguous().movedim(-1, 1)


def _available(backend: str) -> bool:
    from vdiff_fast.ops.group_norm_silu.api import PREDICATES

    return backend in PREDICATES


def _two_pass(x: Tensor, groups: int, per_frame: bool) -> Tensor:
    """Exact even at mean 10000: torch's own channels-last kernel is not, in float64 it is off by 3e-5."""
    frames = x.transpose(1, 2) if per_frame else x[:, None]
    units = frames.reshape(*frames.shape[:2], groups, -1)
    centered = units - units.mean(-1, keepdim=True)
    normed = centered / (centered.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    y = normed.reshape(frames.shape)
    return F.silu(y.transpose(1, 2) if per_frame else y[:, 0])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("per_frame", [False, True])
def test_mean_10000_and_deviation_one_tenth_keep_their_digits(backend: str, per_frame: bool) -> None:
    """In float32 E[x^2] - E[x]^2 has no digit left here: torch's channels-last kernel is off by a factor of 22.

    The mean saved for the backward is rounded to float32, which costs up to 5e-3 of a deviation.
    """
    if not _available(backend):
        pytest.skip(f"no {backend} backend yet")
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(2, 8, 3, 9, 16, generator=generator) * 0.1 + 1e4
    dy = torch.randn(values.shape, generator=generator)
    exact_x = values.double().requires_grad_()
    exact = _two_pass(exact_x, 4, per_frame)
    (exact_dx,) = torch.autograd.grad(exact, exact_x, dy.double())
    for x in list(_layouts(values))[: 1 if backend == "reference" else 2]:
        x.requires_grad_()
        with vf.use_backend(backend):
            y = vf.ops.group_norm_silu(x, 4, per_frame=per_frame)
            (dx,) = torch.autograd.grad(y, x, dy)
        assert relative_error(y, exact) < (2e-7 if backend == "cpu" else 1e-2)
        # Torch's backward cancels sums of 1e4.
        assert relative_error(dx, exact_dx) < (5e-1 if backend == "reference" else 1e-2)


@NATIVE
@pytest.mark.parametrize("op", ["group_norm_silu", "rms_norm_silu"])
def test_halves_of_an_embedding_are_read_by_their_strides(op: str) -> None:
    """What guided diffusion writes: `emb[..., None, None, None].chunk(2, dim=1)` are views of rows twice as long."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3, 8, 2, 4, 4, generator=generator)
    embedding = torch.randn(3, 16, 1, 1, 1, generator=generator)
    function = getattr(vf.ops, op)
    groups = (4,) if op == "group_norm_silu" else ()
    results = []
    for backend in ("reference", "cpu"):
        with vf.use_backend(backend):
            scale, shift = embedding.chunk(2, dim=1)
            results.append(function(x, *groups, scale=scale, shift=shift))
    torch.testing.assert_close(results[1], results[0])


@NATIVE
@pytest.mark.parametrize("per_frame", [False, True])
@pytest.mark.parametrize(
    ("shape", "groups"),
    [((1, 6, 2, 70, 260), 2), ((3, 96, 2, 40, 33), 2), ((1, 64, 3, 64, 64), 2), ((1, 310, 4, 33, 64), 32)],
)
def test_sizes_that_are_cut_between_threads(shape: tuple[int, ...], groups: int, per_frame: bool) -> None:
    """Few groups and many positions take the two-level statistics; every option at once, odd lengths too."""
    channels = shape[1] + 10
    generator = torch.Generator().manual_seed(0)

    def draw(*size: int) -> Tensor:
        return torch.randn(size, generator=generator)

    vectors = {
        "weight": draw(channels), "bias": draw(channels), "scale": draw(shape[0], shape[2], channels),
        "shift": draw(shape[0], channels), "add": draw(shape[0], channels),
    }  # fmt: skip
    x, x2 = draw(*shape), draw(shape[0], 10, *shape[2:])
    dy = draw(shape[0], channels, *shape[2:])
    results = []
    for dtype, backend, last in (
        (torch.float64, "reference", False), (torch.float32, "cpu", False), (torch.float32, "cpu", True),
    ):  # fmt: skip
        inputs = [list(_layouts(t))[last] for t in (x, x2)] + list(vectors.values())
        inputs = [t.to(dtype).requires_grad_() for t in inputs]
        with vf.use_backend(backend):
            options: dict[str, Any] = dict(zip(vectors, inputs[2:]))
            y = vf.ops.group_norm_silu(inputs[0], groups, x2=inputs[1], per_frame=per_frame, **options)
            results.append([y, *torch.autograd.grad(y, inputs, dy.to(dtype))])
    for fused in results[1:]:
        for actual, exact in zip(fused, results[0]):
            assert relative_error(actual, exact) < 2e-6


def _torch_samples() -> Iterator[Any]:
    """Inputs of torch's own OpInfo; its module imports expecttest, which only its snapshot tests use."""
    if "expecttest" not in sys.modules:
        stub = types.ModuleType("expecttest")
        stub.TestCase = unittest.TestCase  # type: ignore[attr-defined]
        sys.modules["expecttest"] = stub
    from torch.testing._internal.common_methods_invocations import op_db

    info = next(op for op in op_db if op.name == "nn.functional.group_norm")
    yield from info.sample_inputs("cpu", torch.float64, requires_grad=True)
    yield from info.sample_inputs("cpu", torch.float32, requires_grad=True)


@pytest.mark.parametrize("backend", ["reference", pytest.param("cpu", marks=NATIVE)])
def test_torchs_own_samples_pass_through(backend: str) -> None:
    count = 0
    for sample in _torch_samples():
        inputs = [sample.input, *[v for v in (*sample.args, *sample.kwargs.values()) if isinstance(v, Tensor)]]
        wanted = F.silu(F.group_norm(sample.input, *sample.args, **sample.kwargs))
        with vf.use_backend(backend):
            actual = vf.ops.group_norm_silu(sample.input, *sample.args, **sample.kwargs)
            plain = vf.ops.group_norm_silu(sample.input, *sample.args, **sample.kwargs, activation="none")
            torch.testing.assert_close(actual, wanted)
            torch.testing.assert_close(F.silu(plain), wanted)
            if wanted.numel():
                dy = torch.randn_like(wanted)
                torch.testing.assert_close(
                    torch.autograd.grad(actual, inputs, dy), torch.autograd.grad(wanted, inputs, dy)
                )
        count += 1
    assert count >= 10


def _saved_bytes(call: Any) -> int:
    """Bytes of distinct storages that autograd keeps for the backward."""
    storages: dict[int, int] = {}

    def pack(t: Tensor) -> Tensor:
        storages[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        call()
    return sum(storages.values())


@NATIVE
@pytest.mark.parametrize("channels_last", [False, True])
def test_saves_half_of_what_eager_saves(channels_last: bool) -> None:
    x = list(_layouts(torch.randn(2, 32, 4, 16, 16)))[channels_last].requires_grad_()
    weight, bias = torch.randn(32, requires_grad=True), torch.randn(32, requires_grad=True)
    eager = _saved_bytes(lambda: F.silu(F.group_norm(x, 8, weight, bias)))
    with vf.use_backend("cpu"):
        fused = _saved_bytes(lambda: vf.ops.group_norm_silu(x, 8, weight, bias))
    small = 4 * (2 * 32 + 2 * 2 * 8)
    assert fused == x.numel() * 4 + small
    assert eager >= 2 * x.numel() * 4


@NATIVE
def test_no_positions_give_zero_gradients() -> None:
    x = torch.randn(2, 8, 0, 3, requires_grad=True)
    weight, bias = torch.randn(8, requires_grad=True), torch.randn(8, requires_grad=True)
    with vf.use_backend("cpu"):
        y = vf.ops.group_norm_silu(x, 2, weight, bias)
        dx, dweight, dbias = torch.autograd.grad(y, (x, weight, bias), torch.ones_like(y))
    assert y.shape == dx.shape == x.shape
    assert not dweight.any()
    assert not dbias.any()


@NATIVE
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_keeps_the_dtype(dtype: torch.dtype) -> None:
    x = torch.randn(2, 8, 3, 4, dtype=dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for backend in ("reference", "cpu"):
            with vf.use_backend(backend):
                assert vf.ops.group_norm_silu(x, 2, torch.ones(8)).dtype == dtype


@NATIVE
def test_skip_pair_in_two_layouts_takes_that_of_x() -> None:
    x, x2 = torch.randn(2, 6, 3, 4), torch.randn(2, 4, 3, 4)
    for first in _layouts(x):
        for second in _layouts(x2):
            with vf.use_backend("cpu"):
                y = vf.ops.group_norm_silu(first, 2, x2=second)
            torch.testing.assert_close(y, F.silu(F.group_norm(torch.cat([x, x2], 1), 2)))
            assert y.is_contiguous() == first.is_contiguous()


# 2 to 8 MB of every unit: more than a cluster holds, in channels-last and in the backward too.
LARGE, LARGE_GROUPS = (2, 32, 8, 128, 128), 4


@pytest.mark.gpu
@pytest.mark.parametrize("channels_last", [False, True])
def test_units_that_only_the_whole_chip_holds(channels_last: bool) -> None:
    x = list(_layouts(torch.randn(LARGE, device="cuda", dtype=torch.bfloat16)))[channels_last].requires_grad_()
    weight, bias, add = (torch.randn(size, device="cuda", requires_grad=True) for size in ((32,), (32,), (2, 32)))
    with vf.use_backend("cuda"):
        sample = Sample("large", (x, LARGE_GROUPS, weight, bias), {"add": add})
        assert_as_close_as_eager(SPEC, sample, torch.bfloat16)


@pytest.mark.gpu
@pytest.mark.parametrize("channels_last", [False, True])
def test_units_that_only_the_whole_chip_holds_in_a_cuda_graph(channels_last: bool) -> None:
    x = list(_layouts(torch.randn(LARGE, device="cuda", dtype=torch.bfloat16)))[channels_last].requires_grad_()
    dy = torch.randn_like(x)

    def step() -> tuple[Tensor, Tensor]:
        with vf.use_backend("cuda"):
            y = vf.ops.group_norm_silu(x, LARGE_GROUPS)
        return y, torch.autograd.grad(y, x, dy)[0]

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        step()
    side.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    for _ in range(3):
        with torch.no_grad():
            x.copy_(torch.randn_like(x))
        graph.replay()
        assert all(torch.equal(a, b) for a, b in zip(captured, step()))
