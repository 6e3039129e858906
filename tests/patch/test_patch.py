"""A patched model gives the same answer with the same state_dict, and can be taken back bit by bit."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import vdiff_fast as vf


def _block() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.GroupNorm(4, 8), nn.SiLU(), nn.Conv2d(8, 8, 3, padding=1), nn.GroupNorm(2, 8), nn.SiLU())


def _input() -> Tensor:
    return torch.randn(2, 8, 6, 5, generator=torch.Generator().manual_seed(1))


def test_a_norm_before_silu_in_any_sequential() -> None:
    model, x = nn.ModuleDict({"block": _block()}), _input()
    keys, before = list(model.state_dict()), model["block"](x)
    report = vf.patch(model)
    assert report.patched == {"group_norm_silu": ("block.0", "block.3")}
    assert report.left == {}
    assert (report.count, report.served, report.places) == (2, 4, 4)
    assert list(model.state_dict()) == keys
    assert isinstance(model["block"][0], nn.GroupNorm)
    assert "FusedSequential" in repr(model)
    assert "GroupNormSiLUBackward" in type(model["block"][:2](x).grad_fn).__name__
    torch.testing.assert_close(model["block"](x), before, rtol=1e-5, atol=1e-6)
    assert vf.patch(model).patched == {}
    assert vf.unpatch(model) == 1
    assert type(model["block"]) is nn.Sequential
    assert torch.equal(model["block"](x), before)
    assert vf.unpatch(model) == 0


def test_gradients() -> None:
    plain, fused, x = _block(), _block(), _input()
    vf.patch(fused)
    for model in (plain, fused):
        model(x).square().sum().backward()
    for (name, a), b in zip(plain.named_parameters(), fused.parameters(), strict=True):
        torch.testing.assert_close(b.grad, a.grad, rtol=1e-5, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}")


def test_copies_and_pickles_stay_patched() -> None:
    model, x = _block(), _input()
    vf.patch(model)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(other(x), model(x))
        assert vf.unpatch(other) == 1
        assert type(model) is not nn.Sequential


def test_compiles_in_one_graph() -> None:
    model, x = _block(), _input()
    expected = model(x)
    vf.patch(model)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), expected, rtol=1e-5, atol=1e-6)


class _Scaled(nn.GroupNorm):
    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        return 2 * super().forward(x)


def test_what_is_left_and_why() -> None:
    hooked = nn.GroupNorm(2, 4)
    hooked.register_forward_hook(lambda *_: None)
    replaced = nn.SiLU()
    replaced.forward = lambda x: x + 1  # type: ignore[method-assign]
    model = nn.ModuleDict(
        {
            "hooked": nn.Sequential(hooked, nn.SiLU()),
            "replaced": nn.Sequential(nn.GroupNorm(2, 4), replaced),
            "subclass": nn.Sequential(_Scaled(2, 4), nn.SiLU()),
            "relu": nn.Sequential(nn.GroupNorm(2, 4), nn.ReLU()),
            "others": nn.Sequential(nn.LayerNorm(4), nn.GELU(), nn.RMSNorm(4), nn.MultiheadAttention(4, 1)),
        }
    )
    report = vf.patch(model)
    assert report.patched == {}
    assert report.left == {
        "has hooks or a forward of its own": ("hooked.0", "hooked.1", "replaced.0", "replaced.1"),
        "_Scaled is not GroupNorm's forward with a cast": ("subclass.0",),
        "no norm that an op does is known to be called before it": ("subclass.1",),
        "no SiLU is known to be called on its result": ("relu.0",),
        "a LayerNorm alone: torch's own kernel is one pass": ("others.0",),
        "a GELU alone: torch's own kernel is one pass": ("others.1",),
        "a RMSNorm alone: torch's own kernel is one pass": ("others.2",),
        "not known to attend over frames": ("others.3",),
    }
    assert (report.served, report.places) == (0, 11)
    assert "left as it was" in str(report)
    assert vf.unpatch(model) == 0


def test_report_of_nothing() -> None:
    assert "nothing" in str(vf.patch(nn.Linear(2, 2)))


def test_a_pipeline_is_not_a_module() -> None:
    class Pipeline:
        components: dict[str, Any] = {}  # noqa: RUF012

    with pytest.raises(TypeError, match=r"got Pipeline; patch its parts, as in vf.patch\(pipe.unet\)"):
        vf.patch(Pipeline())  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="got int"):
        vf.unpatch(3)  # type: ignore[arg-type]
