"""What is special to the adaLN ops: widths, modulation read by stride, hard statistics, saved bytes, unused outputs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import vdiff_fast as vf
from tests.checks import CallRecorder, relative_error
from vdiff_fast import _library

BACKENDS = [
    "reference",
    pytest.param("cpu", marks=pytest.mark.skipif(_library.CPU.reason is not None, reason=_library.CPU.reason or "")),
]
backends = pytest.mark.parametrize("backend", BACKENDS)


def _plain_layer_norm(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + scale) + shift


def _plain_block(residual: Tensor, branch: Tensor, gate: Tensor, shift: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    h = residual + gate * branch
    return h, _plain_layer_norm(h, shift, scale)


def _against_float64(op: Callable[..., Any], plain: Callable[..., Any], inputs: list[Tensor], bound: float) -> None:
    """Values and gradients; every input of `plain` broadcasts against the first."""
    leaves = [t.detach().requires_grad_() for t in inputs]
    exact_leaves = [t.detach().double().requires_grad_() for t in inputs]
    outputs, exact = op(*leaves), plain(*exact_leaves)
    outputs, exact = (o if isinstance(o, tuple) else (o,) for o in (outputs, exact))
    generator = torch.Generator().manual_seed(5)
    cotangents = [torch.randn(o.shape, generator=generator) for o in outputs]
    gradients = torch.autograd.grad(outputs, leaves, cotangents)
    wanted = torch.autograd.grad(exact, exact_leaves, [c.double() for c in cotangents])
    for actual, reference in zip((*outputs, *gradients), (*exact, *wanted)):
        assert relative_error(actual, reference) < bound


@backends
@pytest.mark.parametrize("width", [1, 64, 72, 1152, 3072, 8192])
@pytest.mark.parametrize("vectors", [1, 3, 6], ids=["sample", "frame", "token"])
def test_widths_of_real_models(backend: str, width: int, vectors: int) -> None:
    generator = torch.Generator().manual_seed(width)
    x, branch = (torch.randn(2, 3, 2, width, generator=generator) for _ in range(2))
    shape = {1: (2, 1, 1, width), 3: (2, 3, 1, width), 6: (2, 3, 2, width)}[vectors]
    gate, shift, scale = (torch.randn(shape, generator=generator) for _ in range(3))
    with vf.use_backend(backend):
        if width > 1:  # the gradient of one normed element is zero: nothing to be relative to
            _against_float64(vf.ops.layer_norm_modulate, _plain_layer_norm, [x, shift, scale], 1e-6)
            _against_float64(vf.ops.gated_residual_norm_modulate, _plain_block, [x, branch, gate, shift, scale], 1e-6)
        _against_float64(vf.ops.gated_residual, lambda r, b, g: r + g * b, [x, branch, gate], 1e-6)


@backends
@pytest.mark.parametrize("tokens", [63, 64, 65, 200, 1031])
def test_runs_that_are_cut_between_threads(backend: str, tokens: int) -> None:
    generator = torch.Generator().manual_seed(tokens)
    x, branch = (torch.randn(2, tokens, 48, generator=generator) for _ in range(2))
    gate, shift, scale = (torch.randn(2, 1, 48, generator=generator) for _ in range(3))
    with vf.use_backend(backend):
        _against_float64(vf.ops.gated_residual_norm_modulate, _plain_block, [x, branch, gate, shift, scale], 2e-6)


@pytest.mark.skipif(_library.CPU.reason is not None, reason=_library.CPU.reason or "")
@pytest.mark.parametrize("middle", [(), (4,), (4, 9)], ids=["sample", "frame", "token"])
def test_six_chunks_of_one_linear_are_read_by_stride(middle: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(0)
    x, branch = (torch.randn(2, 4, 9, 40, generator=generator) for _ in range(2))
    packed = torch.randn(2, *middle, 6 * 40, generator=generator)
    chunks = packed.chunk(6, dim=-1)
    with vf.use_backend("cpu"), CallRecorder() as recorder:
        h, y = vf.ops.gated_residual_norm_modulate(x, branch, chunks[2], chunks[3], chunks[4])
        vf.ops.layer_norm_modulate(x, chunks[0], chunks[1])
        vf.ops.gated_residual(x, branch, chunks[5])
    read = [a for _, args, _ in recorder.calls for a in args if isinstance(a, Tensor) and a.shape != (2, 36, 40)]
    read += [a for _, args, _ in recorder.calls for a in args[2:5] if isinstance(a, Tensor) and middle == (4, 9)]
    assert read
    owner = packed.untyped_storage().data_ptr()
    assert all(a.untyped_storage().data_ptr() == owner for a in read), "a modulating vector was copied"
    dense = [c.contiguous() for c in chunks]
    with vf.use_backend("cpu"):
        for actual, wanted in zip((h, y), vf.ops.gated_residual_norm_modulate(x, branch, dense[2], dense[3], dense[4])):
            assert torch.equal(actual, wanted)


@backends
def test_gradient_of_the_packed_modulation(backend: str) -> None:
    """Chunks of one tensor, expanded over the batch: stride 0 in, and a gradient that sums over it out."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(3, 5, 24, generator=generator)

    def value(packed: Tensor, op: Callable[..., Tensor]) -> Tensor:
        shift, scale = packed.expand(3, -1).chunk(2, dim=-1)
        return op(x.to(packed.dtype), shift, scale).square().sum()

    packed = torch.randn(1, 48, generator=generator).requires_grad_()
    exact = packed.detach().double().requires_grad_()
    with vf.use_backend(backend):
        value(packed, vf.ops.layer_norm_modulate).backward()
    value(exact, lambda x, shift, scale: _plain_layer_norm(x, shift[:, None], scale[:, None])).backward()
    assert relative_error(packed.grad, exact.grad) < 1e-6


@pytest.mark.skipif(_library.CPU.reason is not None, reason=_library.CPU.reason or "")
def test_mean_far_above_the_deviation() -> None:
    """Mean 10000 and deviation 0.1: the rounding of the mean alone is 1e-3 of the deviation."""
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(1, 4, 1152, generator=generator) * 0.1 + 10000
    shift, scale = (torch.randn(1, 1, 1152, generator=generator) for _ in range(2))
    with vf.use_backend("cpu"):
        _against_float64(vf.ops.layer_norm_modulate, _plain_layer_norm, [x, shift, scale], 1e-5)


@pytest.mark.skipif(_library.CPU.reason is not None, reason=_library.CPU.reason or "")
def test_saves_no_activation_but_its_inputs_and_the_new_residual() -> None:
    x, branch = (torch.randn(2, 64, 96, requires_grad=True) for _ in range(2))
    vectors = [torch.randn(2, 96, requires_grad=True) for _ in range(3)]
    saved: list[Tensor] = []
    with vf.use_backend("cpu"), torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        vf.ops.gated_residual_norm_modulate(x, branch, *vectors)
    activations = [t for t in saved if t.numel() == x.numel()]
    assert len(activations) == 2  # the new residual and the branch
    assert sum(t.numel() for t in saved if t.numel() != x.numel()) <= 3 * 2 * 96 + 3 * 2 * 64


@backends
def test_either_output_may_go_unused(backend: str) -> None:
    generator = torch.Generator().manual_seed(3)
    inputs = [torch.randn(2, 5, 16, generator=generator) for _ in range(2)]
    inputs += [torch.randn(2, 1, 16, generator=generator) for _ in range(3)]
    for index in (0, 1):
        leaves = [t.detach().requires_grad_() for t in inputs]
        exact = [t.detach().double().requires_grad_() for t in inputs]
        with vf.use_backend(backend):
            vf.ops.gated_residual_norm_modulate(*leaves)[index].square().sum().backward()
        _plain_block(*exact)[index].square().sum().backward()
        for leaf, wanted in zip(leaves, exact):
            if wanted.grad is not None:
                assert leaf.grad is not None
                assert relative_error(leaf.grad, wanted.grad) < 1e-6


@pytest.mark.skipif(_library.CPU.reason is not None, reason=_library.CPU.reason or "")
def test_same_bits_for_any_number_of_threads() -> None:
    generator = torch.Generator().manual_seed(4)
    inputs = [torch.randn(2, 1031, 72, generator=generator) for _ in range(2)]
    inputs += [torch.randn(2, 72, generator=generator) for _ in range(3)]
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            leaves = [t.detach().requires_grad_() for t in inputs]
            with vf.use_backend("cpu"):
                h, y = vf.ops.gated_residual_norm_modulate(*leaves)
            results.append((h, y, *torch.autograd.grad((h.square() + y.square()).sum(), leaves)))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        for a, b in zip(results[0], other):
            assert torch.equal(a, b)
