"""The sampling loop: guidance, noise by sample, bad arguments, and that it samples."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import vdiff_fast as vf
from vdiff_fast.diffusion import NoiseSchedule, sample, sampler_table

LINEAR = NoiseSchedule.linear()
SHAPE = (5, 3, 4, 6, 2)
SAMPLERS = ("ddpm", "ddim", "dpmpp_2m", "dpmpp_2m_sde", "euler")


class Toy(nn.Module):
    """A fixed nonlinear map of x, t, y and context, sample by sample."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(0.4))
        self.dropout = nn.Dropout(0.5)
        self.batches: list[int] = []

    def forward(
        self, x: Tensor, t: Tensor, *, y: Tensor | None = None, context: Tensor | None = None, cond: Any = None
    ) -> Tensor:
        self.batches.append(len(x))
        assert t.shape == (len(x),)
        shift = t.to(x.dtype) / 1000
        if y is not None:
            shift = shift + 0.1 * y
        if context is not None:
            shift = shift + context.mean(dim=(1, 2))
        return self.dropout(torch.tanh(self.scale * x + shift.reshape(-1, *[1] * (x.dim() - 1))))


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("cuts", [(2,), (1, 4)])
def test_the_same_seed_gives_the_same_video_in_any_split(sampler: str, cuts: Sequence[int]) -> None:
    model, labels = Toy(), torch.arange(5)
    options = {"steps": 6, "seed": 9, "guidance": 3.0, "uncond": {"y": 7}, "clip": 1.0, "guidance_rescale": 0.5}
    if sampler == "ddim":
        options["eta"] = 1.0
    whole = sample(model, SHAPE, LINEAR, sampler, y=labels, **options)
    edges = [0, *cuts, 5]
    parts = [
        sample(model, (b - a, *SHAPE[1:]), LINEAR, sampler, y=labels[a:b], sample_offset=a, **options)
        for a, b in pairwise(edges)
    ]
    assert torch.equal(torch.cat(parts), whole)
    assert not torch.equal(sample(model, SHAPE, LINEAR, sampler, y=labels, **options | {"seed": 10}), whole)


def test_batched_and_split_guidance_agree() -> None:
    model = Toy()
    options = {"steps": 4, "guidance": 5.0, "y": torch.arange(5), "uncond": {"y": 9}}
    batched = sample(model, SHAPE, LINEAR, **options)
    assert model.batches == [10] * 4
    model.batches.clear()
    split = sample(model, SHAPE, LINEAR, batch_guidance=False, **options)
    assert model.batches == [5] * 8
    torch.testing.assert_close(batched, split)


def test_guidance_is_the_formula_and_a_missing_input_splits() -> None:
    model, context = Toy(), torch.randn(5, 2, 3)
    table = sampler_table(LINEAR, "ddim", 3, guidance=2.5)
    x = vf.ops.noise(SHAPE, 0)
    for i, t in enumerate(table.timesteps):
        with torch.no_grad():
            model.eval()
            on, off = model(x, t.expand(5), context=context), model(x, t.expand(5))
        x, _ = vf.ops.sampler_step(x, off + 2.5 * (on - off), table.coefficients, i)
    torch.testing.assert_close(sample(model, SHAPE, LINEAR, steps=3, guidance=2.5, context=context), x)


def test_a_guidance_schedule_calls_the_model_once_where_it_is_off() -> None:
    model = Toy()
    sample(model, SHAPE, LINEAR, steps=4, guidance=[1.0, 3.0, 3.0, 1.0], y=torch.arange(5))
    assert model.batches == [5] * 6


def test_the_model_keeps_its_mode_and_latents_and_callback_are_used() -> None:
    model = Toy()
    model.dropout.eval()
    seen: list[int] = []
    latents = torch.randn(SHAPE)
    first = sample(model, SHAPE, LINEAR, steps=3, latents=latents, callback=lambda i, x, x0: seen.append(i))
    assert seen == [0, 1, 2]
    assert model.training
    assert not model.dropout.training
    assert torch.equal(sample(model, SHAPE, LINEAR, steps=3, latents=latents), first)
    assert not first.requires_grad


def test_a_function_samples() -> None:
    assert sample(lambda x, t: x, (1, 2, 3), LINEAR, steps=2).shape == (1, 2, 3)


def test_the_video_is_channels_last() -> None:
    video = sample(lambda x, t: x, SHAPE, LINEAR, steps=2)
    assert vf.layout.is_channels_last(video)


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: sample(Toy(), SHAPE, LINEAR, "plms"), "unknown sampler 'plms'; choose from ddpm, ddim"),
        (lambda: sample(Toy(), SHAPE, LINEAR, steps=0), r"steps must be an int within \[1, 1000\]"),
        (lambda: sample(Toy(), SHAPE, LINEAR, steps=1001), "got 1001"),
        (lambda: sample(Toy(), SHAPE, LINEAR, spacing="even"), "unknown spacing 'even'"),
        (lambda: sample(Toy(), SHAPE, LINEAR, eta=2.0), "eta must be within"),
        (lambda: sample(Toy(), SHAPE, LINEAR, "ddpm", eta=0.5), "for the samplers ddim and euler, not ddpm"),
        (lambda: sample(Toy(), SHAPE, LINEAR, steps=3, guidance=[1.0, 2.0]), "2 scales for 3 steps"),
        (lambda: sample(Toy(), SHAPE, LINEAR, target="eps"), "unknown target 'eps'"),
        (lambda: sample(Toy(), SHAPE, LINEAR, latents=torch.zeros(2)), "latents have shape"),
        (lambda: sample(Toy(), SHAPE, LINEAR, uncond={"label": 3}), "uncond has label"),
        (
            lambda: sample(Toy(), SHAPE, LINEAR, y=torch.arange(5), guidance=2.0, batch_guidance=True),
            "batch_guidance needs an unconditional tensor",
        ),
        (lambda: sampler_table(LINEAR, timesteps=[3, 5]), "must fall strictly"),
        (lambda: sampler_table(LINEAR, timesteps=[1000]), r"within \[0, 999\]"),
        (lambda: sampler_table(LINEAR, "ddpm", variance="learned"), "unknown variance 'learned'"),
        (
            lambda: sampler_table(NoiseSchedule.linear(zero_terminal_snr=True), spacing="trailing"),
            "target 'noise' does not determine the clean video at time 999",
        ),
        (lambda: sampler_table(NoiseSchedule.flow(), spacing="karras", target="v"), "ends in pure noise"),
    ],
)
def test_bad_arguments_say_what_would_work(call: Any, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        call()
