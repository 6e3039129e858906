"""A forward and backward of VideoUNet and VideoDiT copies no activation to change its layout."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from tests.models.copies import layout_copies
from tests.models.helpers import SMALL, SMALL_DIT, small_dit, small_unet, steps, video
from vdiff_fast import _library

SHAPE = (2, 3, 4, 24, 16)

# With one thread torch computes 1x1 convolutions of fewer than 16 frames by im2col, which is a copy of its own.
pytestmark = pytest.mark.usefixtures("two_threads")
needs_kernels = pytest.mark.skipif(_library.CPU.reason is not None, reason="the CPU kernels are not built")


def test_the_counter_sees_copies_and_overlooks_casts_and_biases() -> None:
    x = torch.randn(8, 6)
    linear = torch.nn.Linear(6, 5)
    assert layout_copies(lambda: x.t().contiguous(), 48) == ["aten::clone [[6, 8]]", "aten::copy_ [[6, 8]]"]
    assert layout_copies(lambda: torch.cat([x, x]), 96) == ["aten::cat [[8, 6], [8, 6]]"]
    assert "aten::stack [[8, 6], [8, 6]]" in layout_copies(lambda: torch.stack([x, x]), 96)
    assert layout_copies(lambda: torch.empty(8, 6).copy_(x), 48) == ["aten::copy_ [[8, 6]]"]
    assert layout_copies(lambda: (x.bfloat16(), linear(x)), 1) == []


UNETS = [{"condition_injection": injection, "grid": True} for injection in ("input", "blocks")]
TRANSFORMERS = [
    {"attention": "interleaved", "patch": (1, 2, 2), "condition_injection": "blocks"},
    {"attention": "divided", "patch": (2, 2, 2), "condition_injection": "input"},
    {"attention": "joint", "patch": (1, 2, 2), "condition_injection": "blocks"},
]
CASES = [(small_unet, options) for options in UNETS]
CASES += [(small_dit, {"positions": "rope", "qk_norm": True} | options) for options in TRANSFORMERS]


@needs_kernels
@pytest.mark.parametrize("expanded", [False, True], ids=["dense_gradient", "expanded_gradient"])
@pytest.mark.parametrize("channels_last", [True, False], ids=["channels_last", "ncthw"])
@pytest.mark.parametrize("autocast", [False, True], ids=["fp32", "bf16_autocast"])
@pytest.mark.parametrize(("make", "options"), CASES)
def test_no_layout_copies(
    make: Any, options: dict[str, Any], autocast: bool, channels_last: bool, expanded: bool
) -> None:
    model = make(num_classes=3, context_dim=6, cond_channels=4, **options)
    x, t, labels = video(SHAPE), steps(), torch.tensor([0, 3])
    context, cond = video((2, 5, 6), 1), video((2, 4, *SHAPE[2:]), 2)
    if channels_last:
        x = x.contiguous(memory_format=torch.channels_last_3d)

    def run() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            y = model(x, t, y=labels, context=context, cond=cond)
        loss = y.sum() if expanded else y.square().mean()
        loss.backward()

    run()
    assert layout_copies(run, smallest_activation(options)) == []


def smallest_activation(options: dict[str, Any]) -> int:
    """Elements; the video itself has fewer, and may be copied into place once."""
    b, _, t, h, w = SHAPE
    if "patch" in options:
        return b * t * h * w // math.prod(options["patch"]) * SMALL_DIT["width"]
    return SMALL["channels"][1] * b * t * (h // 2) * (w // 2)
