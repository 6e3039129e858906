"""Weights under the names of any wrapper, nesting and dtype: taken, or refused with the way out."""

from __future__ import annotations

import io
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

from benchmarks.plain_dit import PlainDiT
from tests.models.helpers import steps, video
from vdiff_fast.models import convert
from vdiff_fast.models.weights import (
    NESTED,
    own_names,
    plain_module,
    plain_weights,
    tied_names,
    weights_dtype,
    weights_like,
)

SIZES: dict[str, Any] = {"size": 8, "patch": 2, "channels": 4, "out_channels": 8, "width": 48, "depth": 2, "heads": 3}


def dit() -> nn.Module:
    torch.manual_seed(0)
    model = PlainDiT(**SIZES, num_classes=5)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model


WRAPPED = {
    "plain": lambda model: model,
    "compiled": torch.compile,
    "parallel": nn.DataParallel,
    "averaged": torch.optim.swa_utils.AveragedModel,
    "compiled parallel": lambda model: torch.compile(nn.DataParallel(model)),
    "parallel compiled": lambda model: nn.DataParallel(torch.compile(model)),
}


def compiled_blocks(model: nn.Module) -> nn.Module:
    model.blocks[0] = torch.compile(model.blocks[0])
    model.blocks[1] = checkpoint_wrapper(model.blocks[1])
    return model


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.sampled_from(["module.", "_orig_mod.", "_fsdp_wrapped_module.", "module._orig_mod."]), max_size=3),
    st.lists(st.sampled_from(NESTED), max_size=2), st.sampled_from(["", "model.", "net.denoiser."]), st.booleans(),
)  # fmt: skip
def test_any_prefix_and_nesting_is_taken_off(prefixes: list[str], nesting: list[str], outer: str, beside: bool) -> None:
    state = {"x_embedder.proj.weight": torch.ones(2), "blocks.0.module.bias": torch.zeros(1)}
    source: dict[str, Any] = {"".join(prefixes) + outer + name: value for name, value in state.items()}
    for key in nesting:
        source = {key: source} | ({"epoch": 3, "step": torch.tensor(7), "opt": {"state": {}}} if beside else {})
    found = plain_weights(source, holding="x_embedder.proj.weight")
    assert found.keys() == state.keys()
    assert all(found[name] is value for name, value in state.items())


@pytest.mark.parametrize("wrapper", WRAPPED)
@pytest.mark.parametrize("blocks", [False, True], ids=["whole", "blocks too"])
def test_a_wrapped_module_and_its_state_dict_are_the_plain_one(wrapper: str, blocks: bool) -> None:
    expected = dit().state_dict()
    model = WRAPPED[wrapper](compiled_blocks(dit()) if blocks else dit())
    assert type(plain_module(model)) is PlainDiT
    for source in (model, model.state_dict(), {"ema": model.state_dict(), "opt": {}, "args": None}):
        found = plain_weights(source)
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], value) for name, value in expected.items())
    x, t, y = video((1, 4, 1, 8, 8)), steps(1), torch.tensor([2])
    converted, plain = (convert.from_dit(source, heads=3) for source in (model, expected))
    assert torch.equal(converted(x, t, y=y), plain(x, t, y=y))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_weights_of_every_dtype_are_loaded_in_it(dtype: torch.dtype) -> None:
    """The stored table of positions was rounded with the weights: 0.004 in bfloat16."""
    state = {name: value.to(dtype) for name, value in dit().state_dict().items()}
    model = convert.from_dit(state, heads=3)
    assert {p.dtype for p in model.parameters()} == {dtype}
    assert torch.equal(model.blocks[0].mlp.fc1.weight, state["blocks.0.mlp.fc1.weight"])


def test_mixed_dtypes_take_the_widest() -> None:
    state = dit().state_dict()
    mixed = {name: value.bfloat16() if value.dim() > 1 else value for name, value in state.items()}
    assert {p.dtype for p in convert.from_dit(mixed, heads=3).parameters()} == {torch.float32}
    assert weights_dtype({"a": torch.zeros(1).half(), "b": torch.zeros(1).bfloat16()}) == torch.float32


def test_a_file_of_a_training_script_is_taken_as_it_is() -> None:
    """As facebookresearch/DiT saves it: the averages beside the model, of which they are the better weights."""
    model, file = dit(), io.BytesIO()
    averaged = {name: value + 1 for name, value in model.state_dict().items() if name != "pos_embed"}
    averaged["pos_embed"] = model.state_dict()["pos_embed"]
    torch.save({"model": model.state_dict(), "ema": averaged, "opt": {"state": {}}, "args": {"lr": 1e-4}}, file)
    file.seek(0)
    found = convert.from_dit(torch.load(file, weights_only=True), heads=3)
    assert torch.equal(found.blocks[1].mlp.fc2.bias, averaged["blocks.1.mlp.fc2.bias"])


def without(*names: str) -> dict[str, Tensor]:
    return {name: value for name, value in dit().state_dict().items() if not name.startswith(names)}


@pytest.mark.parametrize(
    ("source", "error", "match"),
    [
        (lambda: "dit.pt", TypeError, r"got str; load a file with torch.load\(path, weights_only=True\)"),
        (lambda: {}, TypeError, "this one has nothing"),
        (lambda: {"weights": dit().state_dict()}, TypeError, r"weights \(OrderedDict\); give the entry .*ema, "),
        (
            lambda: {"a._orig_mod.b": torch.zeros(1), "a.b": torch.zeros(1)},
            ValueError,
            r"a\._orig_mod\.b, a\.b are one name",
        ),
        (lambda: {"up.0.conv.weight": torch.zeros(1)}, ValueError, "no weights of DiT.* beside up.0.conv.weight"),
        (lambda: without("t_embedder.mlp.2"), ValueError, r"nothing was given for conditioning\.0\.time\.linear_2"),
        (lambda: without("blocks.1.adaLN"), ValueError, r"blocks\.1\.adaLN_modulation\.1\.weight is missing"),
        (
            lambda: {n: v.to(torch.float8_e4m3fn) for n, v in dit().state_dict().items() if n != "pos_embed"},
            TypeError,
            "float8_e4m3fn: quantised weights are not taken; give them in float32",
        ),
        (
            lambda: {n: v.to(torch.int8) for n, v in dit().state_dict().items() if n != "pos_embed"},
            TypeError,
            "is torch.int8: quantised",
        ),
        (lambda: dit().state_dict() | {"lora.a": torch.zeros(1)}, ValueError, "no place for lora.a"),
    ],
)
def test_what_is_not_taken_says_what_would_be(source: Any, error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        convert.from_dit(source(), heads=3)


def test_names_of_tied_weights() -> None:
    model = nn.ModuleDict({"a": nn.Linear(2, 2), "b": nn.Linear(2, 2), "c": nn.BatchNorm1d(2)})
    model["b"].weight = model["a"].weight
    model["c"].running_var = model["c"].running_mean
    assert tied_names(model) == {"b.weight": "a.weight", "c.running_var": "c.running_mean"}


def test_a_part_called_module_keeps_its_name() -> None:
    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.module = nn.Linear(2, 2)

    names = own_names(Outer())
    assert names == {"module.weight": "module.weight", "module.bias": "module.bias"}
    state = Outer().state_dict()
    for wrapped in (state, {f"module.{name}": value for name, value in state.items()}):
        assert weights_like(wrapped, names.values()).keys() == state.keys()
    assert weights_like(state, ["weight", "bias"]).keys() == {"weight", "bias"}
