"""NaN and Inf: the error says where, the evidence is kept, the policy holds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.training.small import small_trainer
from vdiff_fast.training.nonfinite import NonFiniteLossError, first_nonfinite_module


class Explodes(nn.Module):
    """Gives NaN in `calls` calls after the first `after`."""

    def __init__(self, after: int, calls: int) -> None:
        super().__init__()
        self.after, self.until, self.seen = after, after + calls, 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen += 1
        return x * float("nan") if self.after < self.seen <= self.until else x


def exploding(run: Path, *, after: int, calls: int = 10**9, **overrides: Any) -> Any:
    trainer = small_trainer(run, **overrides)
    trainer.model.dropout = nn.Sequential(nn.Identity(), Explodes(after, calls))
    return trainer


def test_the_error_names_step_timesteps_files_and_module(tmp_path: Path) -> None:
    trainer = exploding(tmp_path, after=4)
    with pytest.raises(NonFiniteLossError) as caught:
        trainer.fit()
    error = caught.value
    message = str(error)
    assert error.step == 4
    assert message.startswith(f"loss is nan at step 4 (t={error.timesteps}, files=[ramp_")
    assert "first non-finite module: dropout.1. Try a lower learning rate" in message
    assert message.endswith(f"State saved to {tmp_path / 'nan_dump.pt'}")
    assert len(error.timesteps) == 2
    assert all(0 <= t < 1000 for t in error.timesteps)


def test_the_dump_repeats_the_step(tmp_path: Path) -> None:
    trainer = exploding(tmp_path, after=4)
    with pytest.raises(NonFiniteLossError) as caught:
        trainer.fit()
    dump = torch.load(tmp_path / "nan_dump.pt", weights_only=True)
    assert (dump["step"], dump["t"].tolist()) == (4, caught.value.timesteps)
    assert dump["files"] == caught.value.files
    assert dump["sample_offset"] == 4 * trainer.global_batch
    assert dump["x0"].shape == (2, 3, 2, 8, 8)
    for name, value in trainer.model.named_parameters():
        assert torch.equal(dump["model"][name], value)
        assert torch.isfinite(value).all(), "a non-finite step must not reach the weights"


def test_fp16_advises_bf16(tmp_path: Path) -> None:
    with pytest.raises(NonFiniteLossError, match=r"Try precision bf16\. State saved"):
        exploding(tmp_path, after=0, runtime__precision="fp16").fit()


def test_skip_leaves_the_step_out(tmp_path: Path) -> None:
    trainer = exploding(tmp_path, after=4, calls=2, nonfinite__policy="skip")
    trainer.fit()
    assert (trainer.step, trainer.guard.skipped) == (20, 2)
    assert all(bool(torch.isfinite(p).all()) for p in trainer.model.parameters())


def test_skip_stops_after_the_limit(tmp_path: Path) -> None:
    trainer = exploding(tmp_path, after=4, nonfinite__policy="skip", nonfinite__limit=3)
    with pytest.raises(NonFiniteLossError, match="at step 6"):
        trainer.fit()


def test_a_gradient_that_is_not_finite(tmp_path: Path) -> None:
    trainer = small_trainer(tmp_path)
    trainer.model.tail.weight.register_hook(lambda gradient: gradient * float("inf"))
    expected = r"gradient norm is (nan|inf) at step 0 .*module: none \(the forward is finite"
    with pytest.raises(NonFiniteLossError, match=expected):
        trainer.fit()


def test_broken_weights_are_named() -> None:
    net = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.Linear(2, 2), nn.ReLU()))
    x = torch.ones(1, 2)
    assert first_nonfinite_module(net, lambda: net(x)).startswith("none")
    net[1][0].bias.data.fill_(float("inf"))
    assert first_nonfinite_module(net, lambda: net(x)) == "1.0 (weights: bias)"
    assert first_nonfinite_module(net[0], lambda: net[0](x * float("nan"))) == (
        "the model (its input is non-finite already)"
    )
    assert not any(module._forward_hooks for module in net.modules())
