"""Both networks over small sizes: batches of nothing, one frame, one channel, one key, odd sides.

What a network takes is finite, forward and backward; what it does not is a TypeError or ValueError that says so.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.models.helpers import video
from vdiff_fast.models import VideoDiT, VideoUNet
from vdiff_fast.models._denoiser import Denoiser

DITS: dict[str, Any] = {
    "heads": st.sampled_from((1, 2, 3)),
    "depth": st.sampled_from((2, 4, 1)),
    "patch": st.tuples(st.integers(1, 2), st.integers(1, 3), st.integers(1, 2)),
    "attention": st.sampled_from(("divided", "joint", "interleaved")),
    "positions": st.sampled_from(("rope", "sincos", "none")),
    "qk_norm": st.booleans(),
    "adaln": st.sampled_from(("block", "shared")),
}
UNETS: dict[str, Any] = {
    "channels": st.sampled_from(((8,), (8, 8), (8, 16), (1,))),
    "head_dim": st.sampled_from((8, 8, 8, 1)),
    "num_groups": st.sampled_from((1, 2, 8)),
    "positions": st.sampled_from(("rope", "bias")),
    "grid": st.booleans(),
}
INPUTS: dict[str, Any] = {
    "in_channels": st.sampled_from((1, 2)),
    "out_channels": st.sampled_from((1, 2)),
    "num_classes": st.sampled_from((0, 1)),
    "context_dim": st.sampled_from((0, 1, 4)),
    "cond_channels": st.sampled_from((0, 1)),
    "condition_injection": st.sampled_from(("input", "blocks")),
    "interval": st.booleans(),
}


@st.composite
def networks(draw: Any, fields: dict[str, Any]) -> dict[str, Any]:
    """Fields of a network's configuration; many of them fit no network, and are refused."""
    chosen = {name: draw(values) for name, values in (fields | INPUTS).items()}
    if "heads" in chosen:
        chosen["width"] = chosen["heads"] * draw(st.sampled_from((8, 8, 16, 4)))
    if "channels" in chosen:
        for name in ("spatial_attention", "temporal_attention", "temporal_conv"):
            chosen[name] = tuple(draw(st.booleans()) for _ in chosen["channels"])
        chosen["blocks"] = (1,) * len(chosen["channels"])
    return chosen


def built(make: type[Denoiser], fields: dict[str, Any]) -> Denoiser | None:
    """The network with every parameter awake; None where its configuration is refused."""
    torch.manual_seed(0)
    try:
        model = make(**fields)
    except ValueError:
        return None
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


@pytest.mark.parametrize(("make", "fields"), [(VideoUNet, UNETS), (VideoDiT, DITS)], ids=["unet", "dit"])
@settings(max_examples=60, derandomize=True, deadline=None)
@given(data=st.data())
def test_small_sizes(make: type[Denoiser], fields: dict[str, Any], data: st.DataObject) -> None:
    chosen = data.draw(networks(fields))
    model = built(make, chosen)
    if model is None:
        return
    batch, frames = data.draw(st.integers(0, 2)), data.draw(st.sampled_from((1, 2, 3, 1, 2, 0)))
    if data.draw(st.integers(0, 7)) != 1:  # mostly sizes that fit
        cuts = getattr(model.config, "patch", (1,) + (getattr(model.config, "size_multiple", 1),) * 2)
        frames *= cuts[0]
        sides = tuple(cut * data.draw(st.integers(1, 3)) for cut in cuts[1:])
    else:
        sides = (data.draw(st.integers(0, 5)), data.draw(st.integers(0, 5)))
    x = video((batch, chosen["in_channels"], frames, *sides)).requires_grad_()
    given_: dict[str, Any] = {}
    if chosen["num_classes"] and data.draw(st.booleans()):
        given_["y"] = torch.zeros(batch, dtype=torch.int64)
    if chosen["context_dim"] and data.draw(st.booleans()):
        keys = data.draw(st.integers(0, 2))
        given_["context"] = video((batch, keys, chosen["context_dim"]), 1)
        if data.draw(st.booleans()):
            given_["context_mask"] = torch.arange(keys).expand(batch, -1) >= data.draw(st.integers(0, 2))
    if chosen["cond_channels"] and data.draw(st.booleans()):
        given_["cond"] = video((batch, chosen["cond_channels"], frames, *sides), 2)
    if chosen["interval"] and data.draw(st.booleans()):
        given_["r"] = torch.zeros(batch)
    try:
        prediction = model(x, torch.linspace(0, 1, batch), **given_)
    except (TypeError, ValueError):
        return
    assert prediction.shape == (batch, chosen["out_channels"], frames, *sides)
    assert bool(prediction.isfinite().all())
    prediction.square().sum().backward()
    for name, tensor in (("x", x), *model.named_parameters()):
        assert tensor.grad is None or bool(tensor.grad.isfinite().all()), name
    assert x.grad is not None
