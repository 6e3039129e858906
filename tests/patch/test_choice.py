"""include, exclude and strict: what is patched is what was asked for, or nothing is."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import vdiff_fast as vf
from vdiff_fast.patch.fused_class import is_fused


def _model() -> nn.ModuleDict:
    pair = [nn.Sequential(nn.GroupNorm(2, 4), nn.SiLU()) for _ in range(2)]
    return nn.ModuleDict({"down": nn.ModuleList(pair), "up": nn.Sequential(nn.GroupNorm(2, 4), nn.SiLU())})


def test_only_what_is_included() -> None:
    model = _model()
    report = vf.patch(model, include=["down.*"])
    assert report.patched == {"group_norm_silu": ("down.0.0", "down.1.0")}
    assert report.left == {"not included by the caller": ("up.0", "up.1")}
    assert not is_fused(model["up"])


def test_all_but_what_is_excluded() -> None:
    report = vf.patch(_model(), exclude=["down.1", "up"])
    assert report.patched == {"group_norm_silu": ("down.0.0",)}
    assert report.left == {"excluded by the caller": ("down.1.0", "down.1.1", "up.0", "up.1")}


def test_a_norm_that_is_excluded_is_called_by_its_block() -> None:
    model, x = nn.Sequential(nn.GroupNorm(2, 4), nn.SiLU()), torch.randn(2, 4, 3, 3)
    expected = model(x)
    assert vf.patch(model, exclude=["0"]).count == 0
    assert torch.equal(model(x), expected)


def test_strict_raises_and_changes_nothing() -> None:
    model = _model()
    model["up"][0].register_forward_hook(lambda *_: None)
    with pytest.raises(ValueError, match=r"known places are left: has hooks or a forward of its own: up\.0"):
        vf.patch(model, strict=True)
    assert not any(map(is_fused, model.modules()))
    assert vf.patch(model, strict=True, exclude=["up"]).count == 2


def test_one_string_is_no_list_of_patterns() -> None:
    with pytest.raises(TypeError, match=r"include must be patterns of module names, got the string 'up'; use \['up'\]"):
        vf.patch(_model(), include="up")
