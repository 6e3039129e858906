"""Batches of nothing, one frame, one channel, no tokens: every op gives what its reference gives, all of it finite."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import vdiff_fast as vf
from vdiff_fast import _library

pytestmark = pytest.mark.skipif(_library.CPU.reason is not None, reason=f"needs CPU kernels: {_library.CPU.reason}")
SIZES = st.tuples(*[st.integers(0, 3)] * 4)
SCHEDULE = vf.diffusion.NoiseSchedule.linear(10)


def _x(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))).requires_grad_()


def _steps(batch: int) -> Tensor:
    return torch.arange(batch)


def _attention(op: Callable[..., Any], b: int, t: int, s: int, h: int) -> Any:
    return op(*(_x(b, t, s, h, 8) for _ in range(3)))


OPS: dict[str, Callable[[int, int, int, int], Any]] = {
    "geglu": lambda b, t, s, c: vf.ops.geglu(_x(b, t, 2 * c), _x(2 * c)),
    "gelu_tanh": lambda b, t, s, c: vf.ops.gelu_tanh(_x(b, t, c), _x(c)),
    "group_norm_silu": lambda b, t, s, c: vf.ops.group_norm_silu(_x(b, c, t, s, 2), max(c, 1), _x(c), _x(c)),
    "rms_norm_silu": lambda b, t, s, c: vf.ops.rms_norm_silu(_x(b, c, t, s, 2), _x(c)),
    "layer_norm_modulate": lambda b, t, s, c: vf.ops.layer_norm_modulate(_x(b, t, s, c), _x(b, c), _x(b, c)),
    "gated_residual": lambda b, t, s, c: vf.ops.gated_residual(_x(b, t, s, c), _x(b, t, s, c), _x(b, c)),
    "gated_residual_norm_modulate": lambda b, t, s, c: vf.ops.gated_residual_norm_modulate(
        _x(b, t, s, c), _x(b, t, s, c), _x(b, c), _x(b, c), _x(b, c)
    ),
    "temporal_attention": lambda b, t, s, h: _attention(vf.ops.temporal_attention, b, t, s, h),
    "qk_norm_rope": lambda b, t, s, h: vf.ops.qk_norm_rope(
        _x(b, t, s, h, 8), _x(b, t, s, h, 8), qk_norm=(_x(8), _x(8)), rope=vf.ops.rope_tables(s, 8)
    ),
    "q_sample": lambda b, t, s, c: vf.ops.q_sample(_x(b, c, t, s, 2), _steps(b), SCHEDULE, seed=1),
    "timestep_embedding": lambda b, t, s, c: vf.ops.timestep_embedding(_steps(b), 4 + c),
    "timestep_mlp": lambda b, t, s, c: vf.ops.timestep_mlp(_steps(b), _x(c, 8), _x(c), _x(s, c), _x(s)),
    "noise": lambda b, t, s, c: vf.ops.noise((b, c, t, s, 2), 1),
}


def _values(call: Callable[[], Any]) -> list[Tensor]:
    """Outputs, and whether the backward runs."""
    outputs = call()
    outputs = list(outputs) if isinstance(outputs, tuple) else [outputs]
    if outputs[0].requires_grad:
        torch.autograd.backward(outputs, [torch.ones_like(o) for o in outputs])
    return [o.detach() for o in outputs]


@pytest.mark.parametrize("op", OPS)
@settings(max_examples=12, derandomize=True, deadline=None)
@given(sizes=SIZES)
def test_small_sizes(op: str, sizes: tuple[int, int, int, int]) -> None:
    results = []
    for backend in ("reference", "cpu"):
        with vf.use_backend(backend, ops=[op]):
            try:
                results.append(_values(lambda: OPS[op](*sizes)))
            except (ValueError, TypeError) as error:
                results.append(type(error))  # type: ignore[arg-type]
    if isinstance(results[0], type) or isinstance(results[1], type):
        assert results[0] == results[1]
        return
    for reference, kernel in zip(*results, strict=True):
        torch.testing.assert_close(kernel, reference, rtol=1e-4, atol=1e-4)
        assert bool(kernel.isfinite().all())
