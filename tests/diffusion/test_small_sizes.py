"""Every sampler over small schedules, spacings and shapes: a finite video, or a refusal that says what would work."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import vdiff_fast as vf
from tests.models.helpers import small_dit, small_unet
from vdiff_fast.diffusion import SAMPLERS, Churn, Guidance, NoiseSchedule, sample, sampler_table
from vdiff_fast.diffusion.process import to_target
from vdiff_fast.diffusion.spacing import LOG_LEVELS, SPACINGS, rates_at, spaced_times
from vdiff_fast.ops._common.targets import TARGETS

MAKERS: dict[str, Callable[[int], NoiseSchedule]] = {
    "linear": NoiseSchedule.linear,
    "scaled_linear": NoiseSchedule.scaled_linear,
    "cosine": NoiseSchedule.cosine,
    "zero_snr": lambda n: NoiseSchedule.cosine(n, zero_terminal_snr=n > 1),
    "flow": NoiseSchedule.flow,
    "shifted_flow": lambda n: NoiseSchedule.flow(n, shift=3.0),
    "pure_noise": lambda n: NoiseSchedule.from_betas(torch.tensor([0.5] * (n - 1) + [1.0])),
    "loud": lambda n: NoiseSchedule.from_betas(torch.full((n,), 0.9999)),
}
# What a schedule cannot give; anything else is a fault.
REFUSALS = ("does not determine the clean video", "needs a signal", "different times of this")


def unless_refused(make: Callable[[], Any], *reasons: str) -> Any:
    """What `make` makes; None where it raises a ValueError for one of these reasons."""
    try:
        return make()
    except ValueError as error:
        if not any(reason in str(error) for reason in reasons):
            raise
        return None


@st.composite
def runs(draw: Any) -> dict[str, Any]:
    """A schedule, and arguments of `sampler_table` that fit it: all spacings, as many steps as the schedule has too."""
    timesteps = draw(st.integers(1, 9))
    sampler = draw(st.sampled_from(sorted(SAMPLERS)))
    churned = sampler in ("euler", "heun") and draw(st.booleans())
    return {
        "schedule": MAKERS[draw(st.sampled_from(sorted(MAKERS)))](timesteps),
        "sampler": sampler,
        "steps": draw(st.one_of(st.just(timesteps), st.integers(1, timesteps))),
        "target": draw(st.sampled_from(sorted(TARGETS))),
        "spacing": draw(st.sampled_from((None, *SPACINGS))),
        "churn": Churn(draw(st.sampled_from((0.0, 1.0, 50.0)))) if churned else None,
        "eta": draw(st.sampled_from((0.0, 1.0))) if sampler in ("ddim", "euler") and not churned else 0.0,
    }


@settings(deadline=None, max_examples=400)
@given(runs())
def test_a_perfect_model_is_followed_exactly(run: dict[str, Any]) -> None:
    """Where the data is one video, x0 is the same at every time and x stays signal x0 + sigma z: for every solver that
    adds no noise of its own, whatever its order; all end at the video."""
    table = unless_refused(lambda: sampler_table(**run), *REFUSALS)
    if table is None:
        return
    schedule, target = run["schedule"], run["target"]
    assert table.coefficients.isfinite().all()
    video, z = (torch.randn(2, 3, 1, 2, 2, generator=torch.Generator().manual_seed(i)) for i in (1, 2))
    spacing = run["spacing"] or SAMPLERS[run["sampler"]].default_spacing(schedule.kind == "flow")
    rates = rates_at(schedule, table.timesteps.double(), log_levels=spacing in LOG_LEVELS)
    signal, sigma = (rate.float() for rate in rates)

    def model(x: Tensor, t: Tensor, r: Tensor | None = None) -> Tensor:
        i = model.calls  # type: ignore[attr-defined]
        model.calls += 1  # type: ignore[attr-defined]
        noise = (x - signal[i] * video) / sigma[i]
        p, q = {"noise": (0, 1), "x0": (1, 0), "v": (-sigma[i], signal[i]), "flow": (-1, 1)}[target]
        return p * video + q * noise

    model.calls = 0  # type: ignore[attr-defined]
    states: list[Tensor] = []
    made = sample(
        model, video.shape, schedule, table, latents=signal[0] * video + sigma[0] * z,
        callback=lambda i, x, x0: states.append(x),
    )  # fmt: skip
    # x0 is found by a division by the signal, which magnifies what the prediction was rounded by.
    clearest = float(signal[signal > 0].min()) if target != "x0" and bool((signal > 0).any()) else 1.0
    allowed = 1e-4 / clearest**2
    assert float((made - video).abs().max()) <= allowed
    if not table.draws_noise and run["sampler"] != "heun":
        for x, s, n in zip(states, signal[1:], sigma[1:]):
            assert float((x - s * video - n * z).abs().max()) <= allowed


@settings(deadline=None, max_examples=100)
@given(
    runs(), st.sampled_from([(0, 3, 1, 2, 2), (1, 1, 1, 1, 1), (2, 1), (2,), (1, 3, 1, 4, 4), (2, 0, 3)]),
    st.sampled_from([1.0, 0.0, 3.0]), st.sampled_from([0.0, 0.5, 1.0]), st.sampled_from([None, 1.0, "dynamic"]),
    st.sampled_from(["zero", "constant", "x"]),
)  # fmt: skip
def test_the_loop_never_divides_by_nothing(
    run: dict[str, Any], shape: tuple[int, ...], guidance: float, rescale: float, clip: Any, predicts: str
) -> None:
    """Batches of nothing, videos of one element, and models whose last layer is still zero, under guidance."""
    table = unless_refused(lambda: sampler_table(**run, guidance=guidance), *REFUSALS)
    if table is None:
        return

    def model(x: Tensor, t: Tensor, *, y: Tensor, r: Tensor | None = None) -> Tensor:
        assert x.shape[:1] == t.shape == y.shape
        if predicts == "x":
            return x + y.reshape(-1, *[1] * (x.dim() - 1))
        return torch.full_like(x, 0.0 if predicts == "zero" else 0.7)

    made = sample(
        model, shape, run["schedule"], table, y=torch.zeros(shape[0], dtype=torch.int64), clip=clip,
        guidance=Guidance(rescale=rescale, uncond={"y": 1}),
    )  # fmt: skip
    assert made.shape == shape
    assert made.isfinite().all()


@pytest.mark.parametrize(("make", "batch", "frames"), [(small_dit, 0, 2), (small_dit, 1, 1), (small_unet, 1, 1)])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_networks_sample_nothing_and_single_frames(make: Any, sampler: str, batch: int, frames: int) -> None:
    model = make(num_classes=4, interval=sampler == "mean_flow").eval()
    shape = (batch, 3, frames, 8, 8)
    made = sample(
        model, shape, NoiseSchedule.linear(3), sampler, steps=3, clip="dynamic",
        guidance=Guidance(2.0, rescale=0.7, uncond={"y": 4}), y=torch.zeros(batch, dtype=torch.int64),
    )  # fmt: skip
    assert made.shape == shape
    assert made.isfinite().all()


@settings(deadline=None, max_examples=200)
@given(
    st.integers(1, 60), st.sampled_from(sorted(MAKERS)), st.sampled_from(sorted(SAMPLERS)), st.sampled_from(SPACINGS)
)
def test_times_fall_within_the_schedule(timesteps: int, name: str, sampler: str, spacing: str) -> None:
    """For one step, half of the schedule's, all but one and all of them: as many different times."""
    schedule = MAKERS[name](timesteps) if name != "loud" or timesteps < 30 else MAKERS["linear"](timesteps)
    for steps in {1, max(1, timesteps // 2), timesteps - 1 or 1, timesteps}:
        reasons = REFUSALS if spacing in LOG_LEVELS else ()
        times = unless_refused(lambda n=steps: spaced_times(schedule, n, spacing, SAMPLERS[sampler]), *reasons)
        if times is None:
            continue
        assert len(times) == steps
        assert bool((times[1:] < times[:-1]).all())
        assert -1e-9 <= float(times[-1]) <= float(times[0]) <= timesteps - 1
        if steps == timesteps and spacing in ("leading", "trailing"):
            assert times.tolist() == list(range(timesteps))[::-1]


@settings(deadline=None, max_examples=100)
@given(st.integers(1, 40), st.sampled_from(sorted(MAKERS)))
def test_tables_of_any_length_are_finite(timesteps: int, name: str) -> None:
    reasons = ("no noise that float64 can tell",) if name == "loud" else ()
    schedule = unless_refused(lambda: MAKERS[name](timesteps), *reasons)
    if schedule is None:
        return
    for table in ("betas", "alphas", "posterior_variance", "posterior_mean_coef1", "posterior_mean_coef2", "snr"):
        assert getattr(schedule, table).isfinite().all(), table
    x0, z = torch.randn(2, 2, 3), torch.randn(2, 2, 3)
    t = torch.tensor([0, timesteps - 1])
    for target in TARGETS:
        assert to_target(x0, z, t, schedule, target).isfinite().all()


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: NoiseSchedule.from_betas(torch.tensor([0.1, 1.0, 0.1])), "step 2 of 3 adds no noise"),
        (lambda: NoiseSchedule.linear(3, 1e-17, 1e-17), "step 0 of 3 .* use larger betas"),
        (lambda: NoiseSchedule.linear(100_000), "use fewer steps or smaller betas"),
        (lambda: NoiseSchedule.flow(4, shift=1e20), "a shift nearer to 1"),
    ],
)
def test_schedules_without_levels_are_refused(make: Callable[[], NoiseSchedule], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        make()


def test_times_that_are_none_are_refused() -> None:
    schedule = NoiseSchedule.linear(10)
    with pytest.raises(ValueError, match=r"within \[0, 9\]"):
        sampler_table(schedule, timesteps=[float("nan")])
    with pytest.raises(ValueError, match=r"steps_offset -1 moves 5 steps out of \[0, 9\]"):
        sampler_table(schedule, steps=5, steps_offset=-1)
    with pytest.raises(ValueError, match=r"between 8 and 9, pure noise, .* no noise level"):
        sampler_table(NoiseSchedule.linear(10, zero_terminal_snr=True), target="v", timesteps=[9, 8.5])


@pytest.mark.parametrize("backend", ["reference", "auto"])
def test_guidance_keeps_what_has_no_contrast(backend: str) -> None:
    """A prediction that is the same everywhere has deviation 0: there is nothing to restore, and y stays."""
    x = torch.randn(2, 3, 2, 4, 4)
    table = sampler_table(NoiseSchedule.linear(), "ddim", 4, guidance=3.0).coefficients
    constant = torch.full_like(x, 0.3)
    options: dict[str, Any] = {"uncond": torch.full_like(x, 0.1)}
    with vf.use_backend(None if backend == "auto" else backend):
        plain = vf.ops.sampler_step(x, constant, table, 1, **options)[0]
        assert torch.equal(vf.ops.sampler_step(x, constant, table, 1, guidance_rescale=0.7, **options)[0], plain)
