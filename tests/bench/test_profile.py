"""The profile of a training step: every op is found, forward and backward, and nothing stays replaced."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path

import pytest
import torch

import vdiff_fast as vf
from vdiff_fast.bench.models import ModelCase
from vdiff_fast.bench.profile import (
    CONVOLUTION,
    LINEAR,
    NODE,
    REST,
    attributed,
    profile_model,
    recorded,
    table,
    write_profile,
)

CPU = torch.device("cpu")


@pytest.mark.parametrize("backend", ["reference", None])
def test_an_op_owns_its_forward_and_all_of_its_backward(backend: str | None) -> None:
    x = torch.randn(1, 4, 6, 3, 2, 8, requires_grad=True)
    weight = torch.randn(8, 8, requires_grad=True)

    def step() -> None:
        torch.nn.functional.linear(vf.ops.temporal_attention_qkv(x), weight).sum().backward()

    names: dict[str, list[str]] = defaultdict(list)
    with vf.use_backend(backend):
        for op, event in attributed(recorded(step, CPU)):
            names[op].append(event.name)
    forward = [name for name in names["temporal_attention"] if not name.startswith(NODE)]
    assert len(forward) == 1
    assert len(names["temporal_attention"]) > len(forward)
    # The rest of the backward is that of the sum, the product and the leaves.
    rest = [name.removeprefix(NODE) for name in names[REST] if name.startswith(NODE)]
    assert all("Accumulate" in name or name.startswith(("Sum", "View", "TBack", "Unsafe", "Clone")) for name in rest), (
        rest
    )
    assert any(name.startswith(NODE) for name in names[LINEAR])


def test_the_profile_of_a_model_names_its_ops(tmp_path: Path) -> None:
    before = vf.ops.group_norm_silu
    case = ModelCase("VideoUNet tiny", lambda: vf.models.VideoUNet.preset("tiny"), (1, 3, 4, 16, 16), None)
    result = profile_model(case, CPU, seconds=0.1)
    assert vf.ops.group_norm_silu is before
    wanted = {"temporal_attention", "spatial_attention", "group_norm_silu", "q_sample", "diffusion_loss"}
    for times in result["ops_ms"].values():
        assert wanted | {CONVOLUTION, LINEAR} <= set(times)
        assert all(ms > 0 for ms in times.values())
    text = table(result)
    assert "| temporal_attention |" in text
    write_profile(tmp_path / "profile.json", [result], CPU)
    assert json.loads((tmp_path / "profile.json").read_text())["profiles"][0]["model"] == "VideoUNet tiny"
