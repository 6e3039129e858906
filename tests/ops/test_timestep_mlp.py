"""What is special to timestep_mlp: agreement with diffusers' modules."""

from __future__ import annotations

import pytest
import torch
from diffusers.models.embeddings import TimestepEmbedding, Timesteps

import vdiff_fast as vf


def test_it_is_diffusers_timesteps_and_timestep_embedding() -> None:
    torch.manual_seed(0)
    sinusoids, mlp = Timesteps(64, flip_sin_to_cos=True, downscale_freq_shift=0), TimestepEmbedding(64, 128)
    t = torch.tensor([1, 40, 999])
    ours = vf.ops.timestep_mlp(
        t, mlp.linear_1.weight, mlp.linear_1.bias, mlp.linear_2.weight, mlp.linear_2.bias, shift=0.0,
        flip_sin_to_cos=True,
    )  # fmt: skip
    torch.testing.assert_close(ours, mlp(sinusoids(t)), rtol=1e-4, atol=1e-4)


def test_integer_and_float_steps_agree() -> None:
    w1, w2 = torch.randn(8, 16), torch.randn(4, 8)
    t = torch.tensor([3, 700])
    torch.testing.assert_close(
        vf.ops.timestep_mlp(t, w1, None, w2, None), vf.ops.timestep_mlp(t.double(), w1, None, w2, None)
    )


def test_bfloat16_weights_keep_a_precise_time() -> None:
    """A step of 999 in bfloat16 would be 1000: the sinusoids are made in float32 and rounded after."""
    w1, w2 = torch.randn(8, 16), torch.randn(4, 8)
    t = torch.tensor([999, 1000])
    y = vf.ops.timestep_mlp(t, w1.bfloat16(), None, w2.bfloat16(), None)
    assert y.dtype == torch.bfloat16
    assert not torch.equal(y[0], y[1])


@pytest.mark.parametrize("batch", [1, 3, 4, 9])
def test_a_sample_does_not_depend_on_its_batch(batch: int) -> None:
    w1, b1, w2, b2 = torch.randn(40, 24), torch.randn(40), torch.randn(20, 40), torch.randn(20)
    t = torch.arange(batch) * 37
    whole = vf.ops.timestep_mlp(t, w1, b1, w2, b2)
    rows = torch.cat([vf.ops.timestep_mlp(t[i : i + 1], w1, b1, w2, b2) for i in range(batch)])
    torch.testing.assert_close(whole, rows, rtol=1e-6, atol=1e-6)
