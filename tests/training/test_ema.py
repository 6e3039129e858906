"""Averaged weights: exact in every dtype, tied parameters once, everything else the model's own, saved and resumed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, load_model, save_file
from torch import Tensor, nn

from tests.training.small import Ramps, SmallNet, small_config
from vdiff_fast.training import checkpoint as ckpt
from vdiff_fast.training.ema import Ema
from vdiff_fast.training.trainer import Trainer


class EveryKind(nn.Module):
    """A tied pair, a frozen and an integer parameter, an empty one, buffers that are averaged by nobody."""

    def __init__(self, dtype: torch.dtype = torch.float32, tied: bool = True) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 3, bias=False, dtype=dtype), nn.Linear(3, 3, dtype=dtype)
        if tied:
            self.b.weight = self.a.weight
        self.norm = nn.BatchNorm1d(3)
        self.frozen = nn.Parameter(torch.ones(2, dtype=dtype), requires_grad=False)
        self.table = nn.Parameter(torch.arange(4), requires_grad=False)
        self.empty = nn.Parameter(torch.empty(0, dtype=dtype))


def drift(model: nn.Module, step: int) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(step if not parameter.is_floating_point() else 0.25 * step)
        for buffer in model.buffers():
            buffer.add_(1)


@settings(deadline=None, max_examples=40)
@given(
    st.sampled_from([torch.float32, torch.bfloat16, torch.float16, torch.float64]), st.booleans(), st.booleans(),
    st.sampled_from([0.0, 0.9, 0.9999]), st.integers(1, 6),
)  # fmt: skip
def test_every_kind_of_state(dtype: torch.dtype, tied: bool, warmup: bool, decay: float, steps: int) -> None:
    torch.manual_seed(0)
    model = EveryKind(dtype, tied)
    ema = Ema(model, decay, warmup=warmup)
    expected = {name: p.detach().to(torch.float64, copy=True) for name, p in model.named_parameters()}
    for step in range(1, steps + 1):
        drift(model, step)
        ema.update(step)
        own = min(decay, (1 + step) / (10 + step)) if warmup else decay
        for name, p in model.named_parameters():
            expected[name] = own * expected[name] + (1 - own) * p.detach().double()
    state = ema.state_dict()
    assert state.keys() == model.state_dict().keys()
    for name, value in model.state_dict().items():
        if name not in expected and name != "b.weight":
            assert torch.equal(state[name], value), name
    for name in ("a.weight", "b.bias", "frozen", "empty"):
        assert state[name].dtype == torch.promote_types(dtype, torch.float32)
        torch.testing.assert_close(state[name].double(), expected[name], rtol=1e-6, atol=1e-6)
    assert torch.equal(state["table"], model.table)
    assert torch.equal(state["a.weight"], state["b.weight"]) == tied
    trained = {name: value.clone() for name, value in model.state_dict().items()}
    with ema.applied() as averaged:
        assert averaged is model
        for name in ("a.weight", "b.weight", "b.bias"):
            assert torch.equal(model.state_dict()[name], state[name].to(dtype))
        assert (model.a.weight is model.b.weight) == tied
    assert all(torch.equal(value, trained[name]) for name, value in model.state_dict().items())


def test_a_narrow_model_moves_by_what_a_wide_one_does() -> None:
    """0.43 of 0.5 after 20,000 steps of decay 0.9999: bfloat16 cannot add a ten-thousandth."""
    model = nn.Linear(8, 8).bfloat16()
    ema = Ema(model, 0.9999, warmup=False)
    start = model.weight.detach().float().clone()
    with torch.no_grad():
        model.weight.add_(0.5)
    moved = model.weight.detach().float() - start
    for step in range(20_000):
        ema.update(step + 1)
    expected = start + moved * (1 - 0.9999**20_000)
    torch.testing.assert_close(ema.state_dict()["weight"], expected, rtol=1e-4, atol=1e-4)


def test_tied_weights_load_as_their_average() -> None:
    model = EveryKind()
    ema = Ema(model, 0.9, warmup=False)
    start = model.a.weight.detach().clone()
    with torch.no_grad():
        model.a.weight.add_(1)
    ema.update(1)
    fresh = EveryKind()
    fresh.load_state_dict(ema.state_dict())
    torch.testing.assert_close(fresh.a.weight - start, torch.full_like(start, 0.1))
    assert fresh.b.weight is fresh.a.weight


def test_averages_come_back_after_an_error() -> None:
    model = nn.Linear(2, 1)
    ema = Ema(model, 0.5)
    trained = model.weight.data.add_(1.0).clone()
    with pytest.raises(RuntimeError, match="inside"), ema.applied():
        raise RuntimeError("inside")
    assert torch.equal(model.weight, trained)
    with pytest.raises(ValueError, match="got 1"):
        Ema(model, 1)


class TiedNet(SmallNet):
    """Its last layer is its first one turned, as where an embedding is the output's matrix; and a step counter."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__(channels=3, dropout=0.0)
        self.tail.weight = self.head.weight
        self.order = nn.Parameter(torch.arange(3), requires_grad=False)
        self.to(dtype)

    def forward(self, x: Tensor, t: Tensor, *, y: Tensor | None = None) -> Tensor:
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.head.weight.dtype != torch.float32):
            return super().forward(x, t, y=y).to(x.dtype)


def trainer(run: Path, dtype: torch.dtype = torch.float32, **options: Any) -> Trainer:
    torch.manual_seed(1)
    config = small_config(ema__decay=0.9999, ema__warmup=False)
    return Trainer(config, run, dataset=Ramps(), model=TiedNet(dtype), show_progress=False, **options)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_tied_and_narrow_averages_are_saved_once_and_resumed(tmp_path: Path, dtype: torch.dtype) -> None:
    whole, parts = trainer(tmp_path / "whole", dtype), trainer(tmp_path / "parts", dtype)
    whole.fit()
    parts.fit(until=10)
    resumed = trainer(tmp_path / "parts", dtype, resume=True)
    assert resumed.model.tail.weight is resumed.model.head.weight
    assert resumed.model.tail.weight.dtype == dtype
    for name, value in parts.ema.state_dict().items():
        assert torch.equal(resumed.ema.state_dict()[name], value), name
    path = ckpt.latest_checkpoint(tmp_path / "parts" / "checkpoints")
    assert path is not None
    for name in ("model", "ema"):
        stored = load_file(path / f"{name}.safetensors")
        assert ("head.weight" in stored, "tail.weight" in stored) == (True, False)
        assert torch.equal(stored["order"], torch.arange(3))
        with safe_open(path / f"{name}.safetensors", "pt") as file:
            assert file.metadata() == {"tail.weight": "head.weight"}
    assert load_file(path / "ema.safetensors")["head.weight"].dtype == torch.float32
    resumed.fit()
    for name, value in whole.ema.state_dict().items():
        assert torch.equal(resumed.ema.state_dict()[name], value), name
    fresh = TiedNet()
    load_model(fresh, path / "ema.safetensors")
    assert torch.equal(fresh.tail.weight, ckpt.load_checkpoint(path).ema["tail.weight"])


def test_a_checkpoint_with_the_raw_weight_under_the_second_name_still_loads(tmp_path: Path) -> None:
    """What files of earlier versions hold of tied weights: the average is under the first name."""
    one = trainer(tmp_path)
    one.fit(until=2)
    path = ckpt.latest_checkpoint(tmp_path / "checkpoints")
    assert path is not None
    saved = ckpt.load_checkpoint(path)
    for name in ("model", "ema"):
        old = {n: v.clone() for n, v in getattr(saved, name).items()}
        old["tail.weight"] = saved.model["tail.weight"] + 5
        save_file(old, path / f"{name}.safetensors")
    (path / "checksums.json").unlink()  # which earlier versions did not write
    again = trainer(tmp_path, resume=True)
    assert torch.equal(again.ema.state_dict()["tail.weight"], saved.ema["head.weight"])
    assert torch.equal(again.model.tail.weight, saved.model["head.weight"])
    model = TiedNet()
    ckpt.load_weights(model, ckpt.load_checkpoint(path).ema, path)
    assert torch.equal(model.tail.weight, saved.ema["head.weight"])
