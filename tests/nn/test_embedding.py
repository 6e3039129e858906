"""Embeddings of steps and labels."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

import vdiff_fast as vf
from vdiff_fast.nn import GridEmbedding, LabelEmbedding, TimestepEmbedding


def test_timestep_embedding_is_sinusoids_linear_silu_linear() -> None:
    module = TimestepEmbedding(16, 24, 10, shift=0.0, flip_sin_to_cos=True, scale=1000.0)
    t = torch.tensor([0.0, 0.25, 1.0])
    sinusoids = vf.ops.timestep_embedding(t, 16, shift=0.0, flip_sin_to_cos=True, scale=1000.0)
    hidden = F.silu(F.linear(sinusoids, module.linear_1.weight, module.linear_1.bias))
    torch.testing.assert_close(module(t), F.linear(hidden, module.linear_2.weight, module.linear_2.bias))
    assert TimestepEmbedding(16, 24)(t).shape == (3, 24)


def test_labels_have_a_null_class() -> None:
    module = LabelEmbedding(4, 6)
    y = torch.tensor([0, 4, 3])
    assert torch.equal(module(y), module.weight[y])
    assert torch.equal(module(None, 2), module.weight[[4, 4]])
    module(None, 3).sum().backward()
    assert module.weight.grad is not None
    assert torch.equal(module.weight.grad[4], torch.full((6,), 3.0))


@pytest.mark.parametrize("label", [-1, 5])
def test_a_label_outside_the_classes_is_refused(label: int) -> None:
    with pytest.raises(ValueError, match=rf"label {label} is outside 0\.\.3 \(4 is the null class\)"):
        LabelEmbedding(4, 6)(torch.tensor([0, label]))


def test_grid_embedding_is_a_sum_over_the_axes_in_channels_last_memory() -> None:
    module = GridEmbedding(6, octaves=2)
    e = module(5, 4, 3)
    assert e.shape == (1, 6, 5, 4, 3)
    assert vf.layout.is_channels_last(e)
    u = torch.tensor((2 * 1 + 1) / 4 - 1)
    features = torch.stack([u, *(f(u * torch.pi / 2 * 2**m) for f in (torch.sin, torch.cos) for m in range(2))])
    rows = e[0, :, 2, :, 1] - e[0, :, 2, :1, 1]
    first = module.axes[1].weight @ (features - module._features(4, features.device)[0])
    torch.testing.assert_close(rows[:, 1], first)
    assert torch.equal(module(1, 1, 1), module(1, 1, 1))
    centre = sum(axis.weight[:, 3:].sum(1) for axis in module.axes)
    torch.testing.assert_close(module(1, 1, 1).flatten(), centre)
