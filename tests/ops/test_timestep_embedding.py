"""What is special to timestep_embedding: agreement with the conventions in use."""

from __future__ import annotations

import math

import pytest
import torch
from diffusers.models.embeddings import get_timestep_embedding

import vdiff_fast as vf
from vdiff_fast import _library

STEPS = torch.tensor([0, 1, 17, 500, 999])


@pytest.mark.parametrize("dim", [2 * 2, 32, 37, 320])
@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("shift", [0.0, 1.0])
@pytest.mark.parametrize("scale", [1.0, 1000.0])
def test_diffusers_convention(dim: int, flip: bool, shift: float, scale: float) -> None:
    t = STEPS / 1000 if scale == 1000.0 else STEPS
    ours = vf.ops.timestep_embedding(t, dim, shift=shift, flip_sin_to_cos=flip, scale=scale)
    theirs = get_timestep_embedding(t, dim, flip_sin_to_cos=flip, downscale_freq_shift=shift, scale=scale)
    # An fp32 frequency is off by 1e-7, so the phase of step 999 by 1e-4.
    torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-4)


def test_ddpm_convention() -> None:
    """The original TensorFlow code: frequencies over half - 1, sines first."""
    half = 32
    frequency = torch.exp(-math.log(10000) * torch.arange(half, dtype=torch.float64) / (half - 1))
    angle = STEPS.double()[:, None] * frequency
    exact = torch.cat([angle.sin(), angle.cos()], dim=1)
    torch.testing.assert_close(vf.ops.timestep_embedding(STEPS, 64).double(), exact, rtol=0, atol=2e-4)


def test_adm_convention() -> None:
    """guided-diffusion and DiT: frequencies over half, cosines first."""
    half = 32
    frequency = torch.exp(-math.log(10000) * torch.arange(half, dtype=torch.float64) / half)
    angle = STEPS.double()[:, None] * frequency
    exact = torch.cat([angle.cos(), angle.sin()], dim=1)
    ours = vf.ops.timestep_embedding(STEPS, 64, shift=0.0, flip_sin_to_cos=True)
    torch.testing.assert_close(ours.double(), exact, rtol=0, atol=2e-4)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64, torch.uint8])
def test_integer_steps_give_float32(dtype: torch.dtype) -> None:
    t = torch.tensor([0, 200], dtype=dtype)
    ours = vf.ops.timestep_embedding(t, 16)
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours, vf.ops.timestep_embedding(t.float(), 16))


def test_strided_and_expanded_times() -> None:
    t = torch.arange(8)
    torch.testing.assert_close(vf.ops.timestep_embedding(t[::2], 16), vf.ops.timestep_embedding(t[::2].clone(), 16))
    expanded = vf.ops.timestep_embedding(torch.tensor(5).expand(3), 16)
    torch.testing.assert_close(expanded, vf.ops.timestep_embedding(torch.tensor([5, 5, 5]), 16))


@pytest.mark.skipif(_library.CPU.reason is not None, reason=str(_library.CPU.reason))
def test_large_times_keep_their_phase() -> None:
    """The kernels reduce the phase in double: within an ulp or so where float32 would be off by 0.1."""
    t = torch.tensor([999_999, 123_457])
    exact = vf.ops.timestep_embedding(t.double(), 64)
    with vf.use_backend("cpu", ops=["timestep_embedding"]):
        torch.testing.assert_close(vf.ops.timestep_embedding(t, 64).double(), exact, rtol=0, atol=2e-7)
