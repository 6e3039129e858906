"""EMA, learning rate, draws, metrics, evaluation, costs."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from torch import nn

from tests.training.small import SmallNet, small_config
from vdiff_fast.diffusion import NoiseSchedule
from vdiff_fast.training import draws, evaluate
from vdiff_fast.training.build import build_model, build_schedule
from vdiff_fast.training.compare import StepUnderTest
from vdiff_fast.training.metrics import MetricsLog, plot_loss, read_metrics, smooth
from vdiff_fast.training.objective import resolved_precision
from vdiff_fast.training.optimizer import build_optimizer, learning_rate

RATES = {  # in the middle, between warm-up and end, and at the end
    "constant": (2.0, 2.0), "cosine": (1.05, 0.1), "linear": (1.05, 0.1), "cooldown": (2.0, 0.1),
    "inverse_sqrt": (2 * math.sqrt(10 / 61), 2 * math.sqrt(10 / 111)),
}  # fmt: skip


@pytest.mark.parametrize("decay", RATES)
def test_learning_rate(decay: str) -> None:
    config = small_config(optimizer__decay=decay, optimizer__lr=2.0, optimizer__warmup_steps=10).optimizer
    rates = [learning_rate(config, step, 110) for step in range(111)]
    assert rates[:10] == pytest.approx([0.2 * k for k in range(1, 11)])
    assert (rates[60], rates[110]) == pytest.approx(RATES[decay])
    assert rates[10:] == sorted(rates[10:], reverse=True)


def test_norms_and_biases_do_not_decay() -> None:
    optimizer = build_optimizer(nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2)), small_config().optimizer)
    assert [(g["weight_decay"], len(g["params"])) for g in optimizer.param_groups] == [(0.01, 1), (0.0, 3)]


def test_a_frozen_model_is_refused() -> None:
    with pytest.raises(ValueError, match="no parameter of Linear has requires_grad"):
        build_optimizer(nn.Linear(2, 2).requires_grad_(False), small_config().optimizer)


def test_timesteps_are_uniform_and_do_not_depend_on_the_split() -> None:
    t = draws.timesteps(20_000, 10, seed=5, sample_offset=7)
    counts = torch.bincount(t, minlength=10).double()
    # Pearson's chi-squared with 9 degrees of freedom: 27.9 is passed once in a thousand.
    assert float(((counts - 2000).square() / 2000).sum()) < 27.9
    parts = [draws.timesteps(n, 10, seed=5, sample_offset=7 + o) for o, n in ((0, 3), (3, 5))]
    assert torch.equal(torch.cat(parts), t[:8])
    assert not torch.equal(draws.timesteps(100, 1000, 6, 0), draws.timesteps(100, 1000, 5, 0))


def test_dropped_labels_have_their_share() -> None:
    dropped = draws.dropped_labels(20_000, 0.1, seed=1, sample_offset=0)
    assert 0.09 < float(dropped.double().mean()) < 0.11
    assert not draws.dropped_labels(100, 0.0, 1, 0).any()
    assert draws.dropped_labels(100, 1.0, 1, 0).all()


def test_metrics_and_plot(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path)
    for step in range(1, 5):
        log.write({"step": step, "loss": math.nan if step == 3 else 1 / step})
    log.close()
    assert [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()] == [1, 2, 3, 4]
    plot_loss(read_metrics(tmp_path), tmp_path / "loss.png", title="a")
    assert (tmp_path / "loss.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert not list(tmp_path.glob(".writing*"))


def test_smoothing_has_no_bias_at_the_start() -> None:
    assert smooth([2.0] * 5) == pytest.approx([2.0] * 5)
    assert smooth([math.nan, 3.0, math.inf])[1:] == pytest.approx([3.0, 3.0])


def test_psnr_and_motion() -> None:
    windows = torch.zeros(2, 3, 4, 2, 2)
    windows[1] += 0.5
    found = evaluate.nearest_windows(windows[1:] + 0.1, windows)
    assert found.window == [1]
    assert found.psnr == pytest.approx([10 * math.log10(4 / 0.01)], abs=0.01)
    assert evaluate.motion(windows) == 0.0
    ramp = torch.arange(4.0).div(10)[None, None, :, None, None].expand(1, 3, 4, 2, 2)
    assert evaluate.motion(ramp) == pytest.approx(0.1)


def test_saved_bytes_counts_each_storage_once() -> None:
    """h * h keeps h twice, as two views of one storage."""

    class Square(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()))

        def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            h = x * self.scale
            return h * h.view_as(h)

    x0 = torch.rand(2, 3, 2, 4, 4) - 0.5
    step = StepUnderTest(Square(), x0, NoiseSchedule.linear())
    bytes_of_video = x0.numel() * 4
    # x_t, h, and what the loss keeps of prediction and target; the schedule's tables, t and other small tensors beside.
    assert 2 * bytes_of_video <= step.saved_bytes() <= 4 * bytes_of_video + 3 * 4096


def test_parity_of_a_model_without_fused_ops_is_exact() -> None:
    step = StepUnderTest(SmallNet().eval(), torch.rand(1, 3, 2, 8, 8) - 0.5, NoiseSchedule.linear())
    found = step.parity()
    assert found.output == 0.0
    assert found.gradient_scale > 0
    assert found.relative < 1e-3


@pytest.mark.parametrize("name", ["unet-tiny", "dit-tiny"])
def test_continuous_time_reaches_the_networks_sinusoids_in_steps(name: str) -> None:
    config = small_config(
        model__name=name, diffusion__schedule="flow", diffusion__target="flow", diffusion__continuous_time=True
    )
    with torch.device("meta"):
        assert build_model(config).config.time_scale == 1000.0


def test_continuous_time_is_refused_without_a_flow() -> None:
    with pytest.raises(ValueError, match="for the flow schedule, not linear"):
        build_schedule(small_config(diffusion__continuous_time=True).diffusion)


@pytest.mark.parametrize("fast", [False, True])
def test_auto_precision_is_bf16_only_where_the_cpu_multiplies_it(monkeypatch: pytest.MonkeyPatch, fast: bool) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: fast)
    assert resolved_precision("auto", torch.device("cpu")) == ("bf16" if fast else "fp32")
    assert resolved_precision("fp16", torch.device("cpu")) == "fp16"
