"""Normalisation modules: torch's constructor, state_dict and answer."""

from __future__ import annotations

import inspect

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from vdiff_fast.nn.norm import AdaGroupNormSiLU, GroupNormSiLU, RMSNormSiLU


@pytest.mark.parametrize(("ours", "torchs"), [(GroupNormSiLU, nn.GroupNorm), (RMSNormSiLU, nn.RMSNorm)])
def test_constructor_is_torchs(ours: type[nn.Module], torchs: type[nn.Module]) -> None:
    def parameters(module: type[nn.Module]) -> list[tuple[str, object]]:
        return [(p.name, p.default) for p in inspect.signature(module.__init__).parameters.values()]

    assert parameters(ours) == parameters(torchs)


def test_group_norm_takes_torchs_state_and_gives_its_answer() -> None:
    theirs = nn.GroupNorm(4, 12, eps=1e-3)
    nn.init.normal_(theirs.weight)
    nn.init.normal_(theirs.bias)
    ours = GroupNormSiLU(4, 12, eps=1e-3)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 12, 3, 4, 5)
    torch.testing.assert_close(ours(x), F.silu(theirs(x)))
    assert repr(ours) == repr(theirs).replace("GroupNorm", "GroupNormSiLU")


def test_group_norm_reads_a_skip_pair_and_modulation() -> None:
    norm = GroupNormSiLU(2, 10)
    x, skip = torch.randn(2, 6, 3, 4, 5), torch.randn(2, 4, 3, 4, 5)
    scale, shift, add = torch.randn(2, 3, 10), torch.randn(2, 10), torch.randn(2, 10)
    z = torch.cat([x, skip], 1) + add[..., None, None, None]
    frames = z.transpose(1, 2).flatten(0, 1)
    normed = F.group_norm(frames, 2).unflatten(0, (2, 3)).transpose(1, 2)
    wanted = normed * (1 + scale.transpose(1, 2)[..., None, None]) + shift[..., None, None, None]
    actual = norm(x, x2=skip, scale=scale, shift=shift, add=add, per_frame=True)
    torch.testing.assert_close(actual, F.silu(wanted), rtol=1e-5, atol=1e-5)


def test_ada_group_norm_starts_as_group_norm_and_then_follows_its_embedding() -> None:
    norm = AdaGroupNormSiLU(2, 6, embedding_dim=5)
    x, embedding = torch.randn(2, 6, 3, 4, 5), torch.randn(2, 3, 5)
    torch.testing.assert_close(norm(x, embedding), F.silu(F.group_norm(x, 2)))
    assert sorted(norm.state_dict()) == ["bias", "projection.bias", "projection.weight", "weight"]
    nn.init.normal_(norm.projection.weight)
    scale, shift = (v.transpose(1, 2)[..., None, None] for v in norm.projection(F.silu(embedding)).chunk(2, -1))
    wanted = F.silu(F.group_norm(x, 2) * (1 + scale) + shift)
    torch.testing.assert_close(norm(x, embedding), wanted, rtol=1e-5, atol=1e-5)


def test_rms_norm_is_torchs_over_channels() -> None:
    theirs = nn.RMSNorm(6)
    nn.init.normal_(theirs.weight)
    ours = RMSNormSiLU(6)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 6, 3, 4, 5)
    torch.testing.assert_close(ours(x), F.silu(theirs(x.movedim(1, -1)).movedim(-1, 1)))


def test_rms_norm_refuses_two_axes() -> None:
    with pytest.raises(ValueError, match=r"normalized_shape is the number of channels, got \(3, 4\)"):
        RMSNormSiLU([3, 4])
