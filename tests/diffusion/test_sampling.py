"""The sampling loop: guidance, noise by sample, bad arguments, and that it samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import vdiff_fast as vf
from tests.models.helpers import small_dit, small_unet
from vdiff_fast.diffusion import SAMPLERS as RECORDS
from vdiff_fast.diffusion import Guidance, Noise, NoiseSchedule, Sampler, sample, sampler_table
from vdiff_fast.ops.sampler_step import columns

LINEAR = NoiseSchedule.linear()
SHAPE = (5, 3, 4, 6, 2)
SAMPLERS = tuple(RECORDS)


class Toy(nn.Module):
    """A fixed nonlinear map of x, t, y and context, sample by sample."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(0.4))
        self.dropout = nn.Dropout(0.5)
        self.batches: list[int] = []

    def forward(
        self, x: Tensor, t: Tensor, *, y: Tensor | None = None, context: Tensor | None = None, cond: Any = None,
        r: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
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
    guidance = Guidance(3.0, uncond={"y": 7}, rescale=0.5)
    options: dict[str, Any] = {"steps": 6, "guidance": guidance, "clip": 1.0}
    if sampler == "ddim":
        options["eta"] = 1.0
    whole = sample(model, SHAPE, LINEAR, sampler, y=labels, seed=9, **options)
    edges = [0, *cuts, 5]
    parts = [
        sample(model, (b - a, *SHAPE[1:]), LINEAR, sampler, y=labels[a:b], seed=Noise(9, sample_offset=a), **options)
        for a, b in pairwise(edges)
    ]
    assert torch.equal(torch.cat(parts), whole)
    assert not torch.equal(sample(model, SHAPE, LINEAR, sampler, y=labels, **options | {"seed": 10}), whole)


def test_a_sampler_of_ones_own_is_one_record() -> None:
    """DDIM written anew from the clean estimate alone, with the spacing that its record names."""

    def update(rates: Any, options: Any) -> dict[int, Tensor]:
        direction = rates.next_sigma / rates.sigma
        return {columns.X: direction, columns.X0: rates.next_signal - direction * rates.signal}

    own = Sampler("own", update, spacing="trailing")
    options: dict[str, Any] = {"steps": 5, "seed": 3, "y": torch.arange(5)}
    wanted = sample(Toy(), SHAPE, LINEAR, "ddim", spacing="trailing", **options)
    torch.testing.assert_close(sample(Toy(), SHAPE, LINEAR, own, **options), wanted, rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match=r"eta 0\.5 is for the samplers ddim and euler, not own"):
        sample(Toy(), SHAPE, LINEAR, own, eta=0.5)


def test_former_keywords_of_noise_and_guidance_warn_and_mean_the_same() -> None:
    options: dict[str, Any] = {"steps": 3, "y": torch.arange(5)}
    guidance = Guidance(3.0, interval=(0.1, 5.0), rescale=0.5, uncond={"y": 7}, batch="split")
    wanted = sample(Toy(), SHAPE, LINEAR, seed=Noise(4, 2, 0.5, "progressive"), guidance=guidance, **options)
    with pytest.warns(DeprecationWarning, match="goes after 2027-06-30; write ") as seen:
        former = sample(
            Toy(), SHAPE, LINEAR, seed=4, sample_offset=2, frame_correlation=0.5, correlation_kind="progressive",
            guidance=3.0, guidance_interval=(0.1, 5.0), guidance_rescale=0.5, uncond={"y": 7}, guidance_batch="split",
            **options,
        )  # fmt: skip
    assert torch.equal(former, wanted)
    assert len(seen) == 7
    assert {warning.filename for warning in seen} == {__file__}
    with pytest.raises(TypeError, match="unexpected keyword argument 'guidence'"):
        sample(Toy(), SHAPE, LINEAR, guidence=3.0)


def test_batched_and_split_guidance_agree() -> None:
    model = Toy()
    guidance = Guidance(5.0, uncond={"y": 9})
    options: dict[str, Any] = {"steps": 4, "y": torch.arange(5)}
    batched = sample(model, SHAPE, LINEAR, guidance=guidance, **options)
    assert model.batches == [10] * 4
    model.batches.clear()
    split = sample(model, SHAPE, LINEAR, guidance=replace(guidance, batch="split"), **options)
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


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_sampler_is_its_op_step_by_step(sampler: str) -> None:
    """The loop keeps the history that a sampler needs, and no step more."""
    model = Toy().eval()
    table = sampler_table(LINEAR, sampler, 6, eta=1.0 if sampler == "ddim" else 0.0)
    x, x0, older = vf.ops.noise(SHAPE, 4), None, None
    for i, t in enumerate(table.timesteps):
        with torch.no_grad():
            prediction = model(x, t.expand(5))
        zeros = torch.zeros_like(x)
        x, new = vf.ops.sampler_step(
            x, prediction, table.coefficients, i, seed=4,
            previous=zeros if x0 is None else x0, previous2=zeros if older is None else older,
        )  # fmt: skip
        x0, older = new, x0
    torch.testing.assert_close(sample(model, SHAPE, LINEAR, table, seed=4), x)


def test_a_guidance_interval_calls_the_model_once_outside() -> None:
    model = Toy()
    levels = LINEAR.exact_sigma / LINEAR.exact_signal
    interval = (float(levels[250]), float(levels[500]))  # times 750, 500, 250, 0
    guidance = Guidance(3.0, interval=interval)
    sample(model, SHAPE, LINEAR, steps=4, guidance=guidance, y=torch.arange(5))
    assert model.batches == [5] * 5
    assert sampler_table(LINEAR, steps=4, guidance=guidance).guidance == (1.0, 3.0, 1.0, 1.0)


def test_a_guidance_schedule_is_a_function_of_the_share_done() -> None:
    assert sampler_table(LINEAR, steps=5, guidance=lambda done: 1 + 4 * done).guidance == (1.0, 2.0, 3.0, 4.0, 5.0)
    assert sampler_table(LINEAR, "heun", 3, guidance=[2.0, 3.0, 4.0]).guidance == (2.0, 3.0, 3.0, 4.0, 4.0)


def test_joint_guidance_splits_where_memory_ends() -> None:
    class Small(Toy):
        def forward(self, x: Tensor, t: Tensor, **inputs: Any) -> Tensor:
            if len(x) > 5:
                raise torch.OutOfMemoryError("no room")
            return super().forward(x, t, **inputs)

    guidance = Guidance(5.0, uncond={"y": 9})
    options: dict[str, Any] = {"steps": 3, "y": torch.arange(5)}
    model = Small()
    expected = sample(Toy(), SHAPE, LINEAR, guidance=replace(guidance, batch="split"), **options)
    assert torch.equal(sample(model, SHAPE, LINEAR, guidance=guidance, **options), expected)
    assert model.batches == [5] * 6
    with pytest.raises(torch.OutOfMemoryError):
        sample(model, SHAPE, LINEAR, guidance=replace(guidance, batch="joint"), **options)


def test_a_flow_model_gets_s() -> None:
    seen: list[Tensor] = []

    def model(x: Tensor, t: Tensor) -> Tensor:
        seen.append(t)
        return x

    options: dict[str, Any] = {"steps": 4, "target": "flow", "spacing": "trailing", "continuous_time": True}
    sample(model, (2, 3), NoiseSchedule.flow(shift=3.0), "euler", **options)
    u = torch.tensor([1.0, 0.75, 0.5, 0.25])
    torch.testing.assert_close(torch.stack(seen)[:, 0], 3 * u / (1 + 2 * u))


class Modulated(Toy):
    """Takes part in the protocol of ModulationTable."""

    def modulations(self, t: Tensor, y: Tensor | None = None) -> Tensor:
        self.made = getattr(self, "made", 0) + 1
        row = torch.stack([t.float() / 1000, torch.zeros(len(t)) if y is None else 0.1 * y], dim=1)
        return row

    def forward(self, x: Tensor, t: Tensor, *, modulation: Tensor | None = None, **inputs: Any) -> Tensor:
        self.batches.append(len(x))
        rows = self.modulations(t, inputs.get("y")) if modulation is None else modulation
        return torch.tanh(self.scale * x + rows.sum(1).reshape(-1, *[1] * (x.dim() - 1)))


@pytest.mark.parametrize("labels", [None, [3, 3, 3, 3, 3], [0, 1, 1, 0, 2]])
@pytest.mark.parametrize("guidance_batch", ["auto", "split"])
@pytest.mark.parametrize("sampler", ["ddim", "heun"])
def test_the_modulation_table_is_the_model_s_own(labels: Any, guidance_batch: str, sampler: str) -> None:
    y = None if labels is None else torch.tensor(labels)
    uncond = None if y is None else {"y": 7}
    guidance = Guidance([1, 4, 4, 4, 4, 1], uncond=uncond, batch=guidance_batch)
    options: dict[str, Any] = {"steps": 6, "y": y, "guidance": guidance}
    model, plain = Modulated(), Modulated()
    table = sample(model, SHAPE, LINEAR, sampler, **options)
    own = sample(lambda x, t, **inputs: plain(x, t, **inputs), SHAPE, LINEAR, sampler, **options)
    torch.testing.assert_close(table, own)
    assert model.made <= 4  # two runs of the layers for each table, whatever the steps
    assert plain.made >= 6


@pytest.mark.parametrize("make", [small_unet, small_dit])
@pytest.mark.parametrize("guidance_batch", ["joint", "split"])
def test_a_network_samples_the_same_from_what_was_made_before(make: Any, guidance_batch: str) -> None:
    """Modulations of all steps at once, and every projection of the context once for each guidance call."""
    model = make(num_classes=4, context_dim=8).eval()
    shape = (2, 3, 2, 8, 8)
    options: dict[str, Any] = {
        "steps": 3, "y": torch.tensor([0, 3]), "context": torch.randn(2, 5, 8), "clip": 1.0,
        "guidance": Guidance(2.0, uncond={"y": 4, "context": torch.zeros(2, 5, 8)}, batch=guidance_batch),
    }  # fmt: skip
    calls: list[str] = []
    projections = [name for name, _ in model.named_modules() if name.endswith("cross_attn.kv")]
    projections += [name for name, _ in model.named_modules() if name.startswith("context_projection.")]
    for name in projections:
        model.get_submodule(name).register_forward_hook(lambda *_, name=name: calls.append(name))
    actual = sample(model, shape, LINEAR, **options)
    kinds = 1 if guidance_batch == "joint" else 2
    assert sorted(calls) == sorted(projections * kinds)
    calls.clear()
    expected = sample(lambda x, t, **inputs: model(x, t, **inputs), shape, LINEAR, **options)
    assert sorted(calls) == sorted(projections * kinds * 3)
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("make", [small_unet, small_dit])
def test_without_a_context_the_null_token_is_projected_once(make: Any) -> None:
    model, context = make(context_dim=8).eval(), torch.randn(2, 5, 8)
    calls: list[int] = []
    layer = next(m for name, m in model.named_modules() if name.endswith("cross_attn.kv"))
    layer.register_forward_hook(lambda *_: calls.append(1))
    options: dict[str, Any] = {"steps": 3, "guidance": 2.0, "context": context, "clip": 1.0}
    actual = sample(model, (2, 3, 2, 8, 8), LINEAR, **options)
    assert len(calls) == 2
    expected = sample(lambda x, t, **inputs: model(x, t, **inputs), (2, 3, 2, 8, 8), LINEAR, **options)
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


def test_an_interruption_keeps_what_is_done() -> None:
    def stop(i: int, x: Tensor, x0: Tensor) -> None:
        if i == 2:
            raise KeyboardInterrupt

    with pytest.raises(vf.diffusion.SamplingInterrupted, match="after 3 sampling steps") as caught:
        sample(Toy(), SHAPE, LINEAR, steps=5, seed=3, callback=stop)
    table = sampler_table(LINEAR, steps=5)
    rest = sampler_table(LINEAR, timesteps=table.timesteps[3:])
    resumed = sample(Toy(), SHAPE, LINEAR, rest, latents=caught.value.x)
    assert torch.equal(resumed, sample(Toy(), SHAPE, LINEAR, steps=5, seed=3))
    assert caught.value.x0.abs().max() > 0


def test_decoding_in_chunks_of_frames() -> None:
    sizes: list[int] = []

    def decode(latents: Tensor) -> Tensor:
        sizes.append(latents.shape[2])
        return latents.repeat_interleave(2, dim=-1)

    latents = sample(Toy(), SHAPE, LINEAR, steps=2)
    frames = sample(Toy(), SHAPE, LINEAR, steps=2, decode=decode, decode_frames=3)
    assert sizes == [3, 1]
    assert torch.equal(frames, latents.repeat_interleave(2, dim=-1))


def test_a_graph_needs_a_gpu() -> None:
    with pytest.raises(ValueError, match="captures a CUDA graph, but the video is on cpu"):
        sample(Toy(), SHAPE, LINEAR, steps=2, graph=True)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_captured_run_equals_the_eager_one(sampler: str) -> None:
    model = Toy().cuda()
    options: dict[str, Any] = {
        "steps": 5, "seed": 2, "y": torch.arange(5).cuda(),
        "guidance": Guidance([1.0, 3.0, 3.0, 3.0, 1.0], uncond={"y": 7}),
    }  # fmt: skip
    captured = sample(model, SHAPE, LINEAR, sampler, graph=True, **options)
    assert torch.equal(captured, sample(model, SHAPE, LINEAR, sampler, graph=False, **options))


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
        (lambda: sample(Toy(), SHAPE, LINEAR, guidance=Guidance(uncond={"label": 3})), "uncond has label"),
        (
            lambda: sample(Toy(), SHAPE, LINEAR, y=torch.arange(5), guidance=Guidance(2.0, batch="joint")),
            "a joint batch needs an unconditional tensor",
        ),
        (lambda: sampler_table(LINEAR, timesteps=[3, 5]), "must fall strictly"),
        (lambda: sampler_table(LINEAR, timesteps=[1000]), r"within \[0, 999\]"),
        (lambda: sampler_table(LINEAR, "ddpm", variance="learned"), "unknown variance 'learned'; .*, learned_range"),
        (
            lambda: sample(Toy(), SHAPE, LINEAR, "ddpm", steps=2, variance="learned_range"),
            "predicts 6 channels for the 3",
        ),
        (lambda: sample(Toy(), SHAPE, LINEAR, variance="learned_range"), "is for the samplers ddpm, not ddim"),
        (
            lambda: sampler_table(NoiseSchedule.linear(zero_terminal_snr=True), spacing="trailing"),
            "target 'noise' does not determine the clean video at time 999",
        ),
        (lambda: sampler_table(NoiseSchedule.linear(zero_terminal_snr=True), spacing="karras"), "ends in pure noise"),
        (lambda: sampler_table(LINEAR, continuous_time=True), "continuous_time is for flow schedules"),
        (lambda: Guidance(interval=(3.0, 1.0)), "0 <= low < high"),
        (lambda: sampler_table(LINEAR, steps=10, spacing="leading", steps_offset=200), r"out of \[0, 999\]"),
        (
            lambda: sampler_table(
                NoiseSchedule.linear(zero_terminal_snr=True), "heun", 5, target="v", spacing="trailing"
            ),
            "heun needs a signal",
        ),
    ],
)
def test_bad_arguments_say_what_would_work(call: Any, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        call()
