"""act(norm(x)) in a module's own source: the forms that it is written in, and forms that only look like it."""

from __future__ import annotations

import copy
import functools
import importlib
import pickle
import traceback
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch as th
import torch.nn.functional as F
from torch import Tensor, nn

import vdiff_fast as vf
from vdiff_fast import _dispatch


class Layers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.act, self.conv = nn.GroupNorm(2, 8), nn.SiLU(), nn.Conv2d(8, 8, 1)
        self.parts = nn.ModuleList([nn.GroupNorm(4, 8), nn.SiLU()])
        self.norm_2, self.relu = nn.GroupNorm(4, 8), nn.ReLU()


class Nested(Layers):
    def forward(self, x: Tensor) -> Tensor:
        return self.conv(self.act(self.norm(x)))


class Functional(Layers):
    def forward(self, x: Tensor) -> Tensor:
        return F.silu(self.norm(x)) + th.nn.functional.silu(self.norm_2(2 * x))


class Statements(Layers):
    def forward(self, x: Tensor, scale: float = 2.0) -> Tensor:
        hidden = x
        if scale > 1:
            hidden = self.norm(hidden)
            hidden = self.act(hidden)
        for _ in range(2):
            hidden = self.parts[0](hidden * scale)
            hidden = self.parts[1](hidden)
        return hidden


class Branches(Layers):
    def forward(self, x: Tensor, plain: bool = False) -> Tensor:
        if plain:
            x = self.conv(x)
        elif x.shape[0] > 7:
            x = self.norm_2(x)
        else:
            x = self.norm(x)
        x = self.act(x)
        return x


class SomeBranch(Layers):
    def forward(self, x: Tensor) -> Tensor:
        y = x
        if x.shape[0] > 1:
            y = self.norm(x)
        y = self.act(y)
        return y


def nonlinearity(x: Tensor) -> Tensor:
    return x * torch.sigmoid(x)


class OfLatentDiffusion(Layers):
    def forward(self, x: Tensor) -> Tensor:
        h = x
        h = self.norm(h)
        h = nonlinearity(h)
        h = self.conv(h)
        return x + nonlinearity(self.norm_2(h))


class AfterConvolution(Layers):
    """Every layer is called on the result of the one before: no pair may take the norm from the next."""

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        h = self.act(h)
        h = self.conv(h)
        h = self.norm_2(h)
        h = self.act(h)
        return h


class BySetting(Layers):
    per_frame = False

    def forward(self, x: Tensor) -> Tensor:
        if self.per_frame:
            x = self.norm(x)
            x = x + 1
        else:
            x = self.norm(x)
        x = self.act(x)
        return x


class Returns(Layers):
    def forward(self, x: Tensor) -> Tensor:
        if x.shape[0] > 7:
            return x
        else:
            x = self.norm(x)
        x = self.act(x)
        return x


def twice(forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
    @functools.wraps(forward)
    def wrapped(self: nn.Module, *args: Any) -> Tensor:
        return 2 * forward(self, *args)

    return wrapped


class Base(Layers):
    def forward(self, x: Tensor) -> Tensor:
        return x + 1


class Decorated(Base):
    @twice
    def forward(self, x: Tensor) -> Tensor:
        x = super().forward(x)
        x = self.norm(x)
        x = F.silu(x)
        return x


class Inherited(Decorated):
    pass


SERVED = {
    OfLatentDiffusion: 2, AfterConvolution: 2, BySetting: 1, Returns: 1, SomeBranch: 1, Nested: 1, Functional: 2,
    Statements: 3, Branches: 1, Decorated: 1, Inherited: 1,
}  # fmt: skip


def built(cls: type[nn.Module]) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    module = cls()
    for parameter in module.parameters():
        nn.init.normal_(parameter)
    return module, torch.randn(2, 8, 5, 4)


def calls(module: nn.Module, x: Tensor) -> int:
    """Calls of the fused op in one forward."""
    return len([choice for choice in _dispatch.observed(lambda: module(x)) if choice.op == "group_norm_silu"])


@pytest.mark.parametrize("cls", SERVED)
def test_every_form_is_served(cls: type[nn.Module]) -> None:
    module, x = built(cls)
    expected = module(x)
    expected.square().sum().backward()
    gradients = {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}
    module.zero_grad()
    report = vf.patch(module)
    assert report.patched
    assert calls(module, x) == SERVED[cls]
    for network in (module, copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert type(network).__name__ == cls.__name__
        torch.testing.assert_close(network(x), expected, rtol=1e-5, atol=1e-5)
    module(x).square().sum().backward()
    for name, gradient in gradients.items():
        torch.testing.assert_close(module.get_parameter(name).grad, gradient, rtol=1e-4, atol=1e-4)
    assert vf.patch(module).patched == {}
    assert vf.unpatch(module) == 1
    assert type(module) is cls
    assert calls(module, x) == 0


@pytest.mark.parametrize("cls", SERVED)
def test_a_hook_or_another_class_in_between(cls: type[nn.Module]) -> None:
    module, x = built(cls)
    vf.patch(module)
    seen: list[Tensor] = []
    norm = module.get_submodule("parts.0" if cls is Statements else "norm")
    handle = norm.register_forward_hook(lambda _, args, output: seen.append(output))
    y = module(x)
    assert seen
    handle.remove()
    torch.testing.assert_close(module(x), y, rtol=1e-5, atol=1e-5)
    module.norm, module.act = nn.Identity(), nn.ReLU()
    plain, _ = built(cls)
    plain.norm, plain.act = nn.Identity(), nn.ReLU()
    torch.testing.assert_close(module(x), plain(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("cls", [OfLatentDiffusion, Functional, Branches])
def test_compiles_whole(cls: type[nn.Module], monkeypatch: pytest.MonkeyPatch) -> None:
    """With the op too, as on a GPU."""
    module_of_run = importlib.import_module("vdiff_fast.patch.norm_silu")
    monkeypatch.setattr(module_of_run, "left_to_inductor", lambda *_: False)
    module, x = built(cls)
    vf.patch(module)
    expected = module(x)
    torch._dynamo.reset()
    torch.testing.assert_close(torch.compile(module, fullgraph=True, backend="eager")(x), expected)


def test_arguments_defaults_and_compilation() -> None:
    module, x = built(Statements)
    expected = [module(x), module(x, scale=0.5), module(x, 3.0)]
    vf.patch(module)
    for actual, wanted in zip((module(x), module(x, scale=0.5), module(x, 3.0)), expected, strict=True):
        torch.testing.assert_close(actual, wanted, rtol=1e-5, atol=1e-5)
    compiled = torch.compile(module, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(x), expected[0], rtol=1e-5, atol=1e-5)


def test_an_error_names_the_line_of_the_source() -> None:
    module, _ = built(Nested)
    vf.patch(module)
    with pytest.raises(RuntimeError) as caught:
        module(torch.randn(2, 8))
    frame = next(
        f for f in traceback.extract_tb(caught.value.__traceback__) if f.filename == __file__ and f.name == "forward"
    )
    assert frame.line == "return self.conv(self.act(self.norm(x)))"


# What is left alone


class UsedTwice(Layers):
    def forward(self, x: Tensor) -> Tensor:
        hidden = self.norm(x)
        y = self.act(hidden)
        return y + hidden


class OtherActivation(Layers):
    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.norm(x))


def swish(x: Tensor, scale: float = 1.702) -> Tensor:
    return x * torch.sigmoid(scale * x)


class QuickSwishFunction(Layers):
    def forward(self, x: Tensor) -> Tensor:
        return swish(self.norm(x))


class MoreArguments(Layers):
    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(x)
        x = x + 1
        x = self.act(x)
        return x


LEFT = "no SiLU is known to be called on its result"


@pytest.mark.parametrize("cls", [UsedTwice, OtherActivation, MoreArguments, QuickSwishFunction])
def test_what_is_not_it_is_left_with_the_reason(cls: type[nn.Module]) -> None:
    module, x = built(cls)
    expected = module(x)
    report = vf.patch(module)
    assert report.patched == {}
    assert report.left[LEFT] == ("norm", "parts.0", "norm_2")
    assert (report.served, report.places) == (0, 5)
    assert type(module) is cls
    assert torch.equal(module(x), expected)


def test_a_setting_of_the_module_decides_which_branch_counts() -> None:
    module, x = built(BySetting)
    module.per_frame = True
    expected = module(x)
    assert vf.patch(module).left[LEFT] == ("norm", "parts.0", "norm_2")
    assert torch.equal(module(x), expected)


def test_source_that_cannot_be_read() -> None:
    scope: dict[str, Any] = {"Layers": Layers}
    exec("class Typed(Layers):\n    def forward(self, x):\n        return self.act(self.norm(x))", scope)
    module, x = built(scope["Typed"])
    expected = module(x)
    assert vf.patch(module).left[LEFT] == ("norm", "parts.0", "norm_2")
    assert torch.equal(module(x), expected)


# Classes that compute what torch's compute


class InFloat32(nn.GroupNorm):
    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(x.float()).type(x.dtype)


class ByFunction(nn.GroupNorm):
    def forward(self, input: Tensor) -> Tensor:
        weight = self.weight.float() if self.weight is not None else None
        bias = self.bias.float() if self.bias is not None else None
        return F.group_norm(input.float(), self.num_groups, weight, bias, self.eps).to(input.dtype)


class Renamed(nn.GroupNorm):
    pass


class Swish(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * th.sigmoid(x)


class SwishInFloat32(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.silu(x.float()).to(x.dtype)


@pytest.mark.parametrize("norm", [InFloat32, ByFunction, Renamed])
@pytest.mark.parametrize("act", [nn.SiLU, Swish, SwishInFloat32])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_parent_with_casts_is_taken(norm: type[nn.GroupNorm], act: type[nn.Module], dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    module = nn.Sequential(norm(2, 8), act()).to(dtype)
    if norm is InFloat32:
        module.float()  # as guided-diffusion keeps them; torch refuses others
    x = torch.randn(2, 8, 5, 4).to(dtype)
    exact = nn.functional.silu(nn.functional.group_norm(x.double(), 2, *(p.double() for p in module.parameters())))
    eager = (module(x) - exact).norm()
    assert vf.patch(module).count == 1
    assert calls(module, x) == 1
    assert module(x).dtype == dtype
    assert (module(x) - exact).norm() <= 1.1 * eager + 1e-7 * exact.norm()


class Half(nn.GroupNorm):
    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(x) / 2


class OtherDtype(nn.GroupNorm):
    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(x.float())


class Rounding(nn.GroupNorm):
    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(x.bfloat16()).type(x.dtype)


class ByFlag(nn.GroupNorm):
    halved = False

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        y = super().forward(x)
        return y / 2 if self.halved else y


class OtherGroups(nn.GroupNorm):
    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        return F.group_norm(x, 1, self.weight, self.bias, self.eps)


class ByValue(nn.GroupNorm):
    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(x) if x.sum() > 0 else x


class QuickSwish(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.702 * x)


@pytest.mark.parametrize("norm", [Half, OtherDtype, Rounding, ByFlag, OtherGroups, ByValue])
def test_a_norm_that_computes_something_else_is_left(norm: type[nn.GroupNorm]) -> None:
    module, x = nn.Sequential(norm(2, 8), nn.SiLU()), torch.randn(2, 8, 5, 4)
    expected = module(x)
    report = vf.patch(module)
    assert report.patched == {}
    assert report.left[f"{norm.__name__} is not GroupNorm's forward with a cast"] == ("0",)
    assert torch.equal(module(x), expected)


def test_an_activation_that_computes_something_else_is_left() -> None:
    report = vf.patch(nn.Sequential(nn.GroupNorm(2, 8), QuickSwish()))
    assert report.patched == {}
    assert report.left["QuickSwish is not SiLU alone"] == ("1",)
