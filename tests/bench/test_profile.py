"""The profile of a training step: every op is found, forward and backward, and nothing stays replaced."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import vdiff_fast as vf
from vdiff_fast.bench.profile import CONVOLUTION, LINEAR, REST, profile_model, shares, table, write_profile
from vdiff_fast.bench.profile import ProfiledModel as Model

CPU = torch.device("cpu")


@pytest.mark.parametrize("backend", ["reference", None])
def test_time_of_an_op_is_its_forward_and_its_backward(backend: str | None) -> None:
    """A step of one op and a product: their shares are all there is, and the op's grows by its backward."""
    x = torch.randn(2, 16, 64, 3, 4, 32, requires_grad=True)
    weight = torch.randn(32, 32, requires_grad=True)

    def forward() -> torch.Tensor:
        return torch.nn.functional.linear(vf.ops.temporal_attention_qkv(x), weight)

    with vf.use_backend(backend):
        alone, both = shares(forward, CPU), shares(lambda: forward().sum().backward(), CPU)
    assert set(alone) <= {"temporal_attention", LINEAR, REST}
    assert both["temporal_attention"] > 1.3 * alone["temporal_attention"]
    assert both[LINEAR] > alone[LINEAR] > 0


def test_the_profile_of_a_model_names_its_ops(tmp_path: Path) -> None:
    before = vf.ops.group_norm_silu
    result = profile_model(Model("VideoUNet tiny", "tiny", (1, 3, 4, 16, 16)), CPU, seconds=0.1)
    assert vf.ops.group_norm_silu is before
    wanted = {"temporal_attention", "spatial_attention", "group_norm_silu", "q_sample", "diffusion_loss"}
    for times in result["ops_ms"].values():
        assert wanted | {CONVOLUTION, LINEAR} <= set(times)
        assert all(ms > 0 for ms in times.values())
    text = table(result)
    assert "| temporal_attention |" in text
    write_profile(tmp_path / "profile.json", [result], CPU)
    assert json.loads((tmp_path / "profile.json").read_text())["profiles"][0]["model"] == "VideoUNet tiny"
