"""Stores past the cache write what stores through it write, on every instruction set."""

from __future__ import annotations

import ctypes
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import vdiff_fast as vf
from vdiff_fast import _library
from vdiff_fast._spec import randn

pytestmark = pytest.mark.skipif(_library.CPU.reason is not None, reason=f"needs CPU kernels: {_library.CPU.reason}")

LARGER_THAN_ANY = 2**60


def _set_last_cache(size: int) -> int:
    function = ctypes.CDLL(str(_library.CPU.path)).vdiff_fast_set_last_cache
    function.restype = ctypes.c_int64
    return int(function(ctypes.c_int64(size)))


def _group_norm(width: int, dtype: torch.dtype, last: bool) -> list[Tensor]:
    x = randn((2, width, 2, 4, 16), torch.device("cpu"), dtype)
    x = x.detach().to(memory_format=torch.channels_last_3d if last else torch.contiguous_format).requires_grad_()
    y = vf.ops.group_norm_silu(x, width // 4)
    return [y, *torch.autograd.grad(y, x, torch.ones_like(y))]


def _rows(width: int, dtype: torch.dtype, op: Callable[..., Tensor], activations: int, vectors: int) -> list[Tensor]:
    device = torch.device("cpu")
    inputs = [randn((2, 37, width), device, dtype, seed=i) for i in range(activations)]
    inputs += [randn((2, width), device, dtype, seed=i) for i in range(vectors)]
    result = op(*inputs)
    outputs = list(result) if isinstance(result, tuple) else [result]
    return [*outputs, *torch.autograd.grad(outputs, inputs, [torch.ones_like(y) for y in outputs])]


CASES: dict[str, Callable[[int, torch.dtype], list[Tensor]]] = {
    "group_norm_silu": lambda width, dtype: _group_norm(width, dtype, last=False),
    "group_norm_silu-channels_last": lambda width, dtype: _group_norm(width, dtype, last=True),
    "gated_residual": lambda width, dtype: _rows(width, dtype, vf.ops.gated_residual, 2, 1),
    "layer_norm_modulate": lambda width, dtype: _rows(width, dtype, vf.ops.layer_norm_modulate, 1, 2),
    "gated_residual_norm_modulate": lambda width, dtype: _rows(width, dtype, vf.ops.gated_residual_norm_modulate, 2, 3),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("width", [64, 20])
@pytest.mark.parametrize("case", CASES)
def test_same_bits(case: str, width: int, dtype: torch.dtype, isa: str) -> None:
    """A width of 64 is whole vectors everywhere, one of 20 is not."""
    before = _set_last_cache(LARGER_THAN_ANY)
    try:
        through = CASES[case](width, dtype)
        _set_last_cache(0)
        past = CASES[case](width, dtype)
    finally:
        _set_last_cache(before)
    for a, b in zip(through, past, strict=True):
        assert a.isfinite().all()
        assert torch.equal(a, b)
