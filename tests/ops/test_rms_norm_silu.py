"""What is special to rms_norm_silu: the peers' formula, and float16 where F.normalize fails."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

import vdiff_fast as vf
from tests.checks import relative_error
from vdiff_fast import _library

BACKENDS = [
    "reference",
    pytest.param("cpu", marks=pytest.mark.skipif(_library.CPU.reason is not None, reason=_library.CPU.reason or "")),
]


@pytest.mark.parametrize("backend", BACKENDS)
def test_is_the_norm_of_lucidrains_and_wan(backend: str) -> None:
    x, gamma = torch.randn(2, 24, 3, 4, 5), torch.randn(24)
    peer = F.silu(F.normalize(x, dim=1) * 24**0.5 * gamma.view(-1, 1, 1, 1))
    with vf.use_backend(backend):
        torch.testing.assert_close(vf.ops.rms_norm_silu(x, gamma, eps=0.0), peer)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("magnitude", [1e-4, 3e4])
def test_float16_neither_underflows_nor_overflows(backend: str, magnitude: float) -> None:
    """The squares of 1e-4 are below float16's least number and those of 3e4 above its largest."""
    generator = torch.Generator().manual_seed(0)
    x = (torch.rand(2, 64, 3, 4, generator=generator) * magnitude).half()
    exact = F.normalize(x.double(), dim=1) * 8
    with vf.use_backend(backend):
        for layout in (x, x.contiguous(memory_format=torch.channels_last)):
            y = vf.ops.rms_norm_silu(layout, eps=1e-16, activation="none")
            assert relative_error(y, exact) < 1e-3


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shape", [(2, 96, 3, 40, 33), (1, 20, 200, 90)])
def test_sizes_that_are_cut_between_threads(backend: str, shape: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(0)
    x, dy = (torch.randn(shape, generator=generator) for _ in range(2))
    gamma = torch.randn(shape[1], generator=generator)
    exact_inputs = [t.double().requires_grad_() for t in (x, gamma)]
    with vf.use_backend("reference"):
        exact = vf.ops.rms_norm_silu(*exact_inputs)
    wanted = torch.autograd.grad(exact, exact_inputs, dy.double())
    for last in (False, True):
        inputs = [x.movedim(1, -1).contiguous().movedim(-1, 1) if last else x.clone(), gamma.clone()]
        inputs = [t.requires_grad_() for t in inputs]
        with vf.use_backend(backend):
            y = vf.ops.rms_norm_silu(*inputs)
        for actual, reference in zip(torch.autograd.grad(y, inputs, dy), wanted):
            assert relative_error(actual, reference) < 2e-6
        assert relative_error(y, exact) < 2e-7
