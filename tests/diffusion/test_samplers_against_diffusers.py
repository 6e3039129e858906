"""Every sampler step for step against diffusers' scheduler of the same name, on random model outputs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    HeunDiscreteScheduler,
    UniPCMultistepScheduler,
)
from torch import Tensor

import vdiff_fast as vf
from vdiff_fast.diffusion import NoiseSchedule, SamplerTable, sampler_table
from vdiff_fast.ops.sampler_step import columns

SHAPE = (2, 3, 4, 6, 5)
PREDICTION = {"noise": "epsilon", "v": "v_prediction", "x0": "sample"}
LINEAR = NoiseSchedule.linear()


def exact_tables(scheduler: Any, schedule: NoiseSchedule) -> Any:
    """Give diffusers' scheduler the float64 products, so that only the samplers are compared."""
    scheduler.alphas_cumprod = schedule.exact_signal**2
    scheduler.alphas = schedule.alphas.double()
    scheduler.betas = 1 - scheduler.alphas
    scheduler.alpha_t = schedule.exact_signal
    scheduler.sigma_t = schedule.exact_sigma
    scheduler.lambda_t = (schedule.exact_signal / schedule.exact_sigma).log()
    return scheduler


def close(ours: Tensor, theirs: Tensor) -> None:
    """Within 1e-5 of the size of the answer."""
    error = float((ours.double() - theirs.double()).norm() / theirs.double().norm())
    assert error <= 1e-5, error


def walk(table: SamplerTable, step: Any, **options: Any) -> None:
    """Both samplers from the same x at every step; `step(i, t, x, prediction, noise)` is diffusers' x_prev."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(SHAPE, generator=generator)
    previous = previous2 = None
    for i, t in enumerate(table.timesteps):
        prediction = torch.randn(SHAPE, generator=generator) * 0.7
        noise = torch.randn(SHAPE, generator=generator)
        theirs = step(i, t, x, prediction, noise)
        x, x0 = vf.ops.sampler_step(
            x, prediction, table.coefficients, i, previous=previous if table.uses_previous else None,
            previous2=previous2 if table.uses_previous2 else None, noise=noise, **options,
        )  # fmt: skip
        previous, previous2 = x0, previous
        close(x, theirs)
        assert x.isfinite().all()


def with_noise(module: str, monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """diffusers draws its own noise; it gets what lies in this list."""
    box: list[Tensor] = []
    monkeypatch.setattr(f"diffusers.schedulers.{module}.randn_tensor", lambda *a, **k: box[0])
    return box


@pytest.mark.parametrize("target", PREDICTION)
@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large"])
@pytest.mark.parametrize("steps", [10, 1000])
@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
def test_ddpm(target: str, variance: str, steps: int, spacing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = exact_tables(
        DDPMScheduler(prediction_type=PREDICTION[target], variance_type=variance, timestep_spacing=spacing), LINEAR
    )
    theirs.set_timesteps(steps)
    table = sampler_table(LINEAR, "ddpm", steps, target=target, variance=variance, spacing=spacing)
    assert table.timesteps.tolist() == theirs.timesteps.tolist()
    if steps == 1000:
        table = SamplerTable(
            **{**table.__dict__, "timesteps": table.timesteps[-40:], "coefficients": table.coefficients[-40:]}
        )
    box = with_noise("scheduling_ddpm", monkeypatch)

    def step(i: int, t: Tensor, x: Tensor, prediction: Tensor, noise: Tensor) -> Tensor:
        # With fixed_large diffusers adds noise to the finished video too, where its last time is not 0.
        box[:] = [noise if i < table.steps - 1 else 0 * noise]
        return theirs.step(prediction, t, x).prev_sample

    walk(table, step, clip=1.0)


@pytest.mark.parametrize("target", PREDICTION)
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("spacing", ["leading", "trailing"])
@pytest.mark.parametrize("clipped", [False, True])
def test_ddim(target: str, eta: float, spacing: str, clipped: bool) -> None:
    theirs = exact_tables(DDIMScheduler(prediction_type=PREDICTION[target], timestep_spacing=spacing), LINEAR)
    theirs.set_timesteps(20)
    table = sampler_table(LINEAR, "ddim", 20, target=target, eta=eta, spacing=spacing, use_clipped_model_output=clipped)
    assert table.timesteps.tolist() == theirs.timesteps.tolist()

    def step(i: int, t: Tensor, x: Tensor, prediction: Tensor, noise: Tensor) -> Tensor:
        extra = {"variance_noise": noise, "eta": eta, "use_clipped_model_output": clipped}
        return theirs.step(prediction, int(t), x, **extra).prev_sample

    walk(table, step, clip=1.0)


@pytest.mark.parametrize("steps", [3, 10, 20])
@pytest.mark.parametrize("spacing", ["linspace", "leading", "trailing", "karras"])
@pytest.mark.parametrize("target", PREDICTION)
@pytest.mark.parametrize("stochastic", [False, True])
def test_dpmpp_2m(steps: int, spacing: str, target: str, stochastic: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    schedule = NoiseSchedule.cosine()  # with this one diffusers keeps Karras times unrounded
    theirs = exact_tables(
        DPMSolverMultistepScheduler(
            beta_schedule="squaredcos_cap_v2",
            prediction_type=PREDICTION[target],
            timestep_spacing="linspace" if spacing == "karras" else spacing,
            use_karras_sigmas=spacing == "karras",
            algorithm_type="sde-dpmsolver++" if stochastic else "dpmsolver++",
        ),
        schedule,
    )
    theirs.set_timesteps(steps)
    name = "dpmpp_2m_sde" if stochastic else "dpmpp_2m"
    table = sampler_table(schedule, name, steps, target=target, spacing=spacing)
    if spacing != "karras":
        assert table.timesteps.tolist() == theirs.timesteps.tolist()
    box = with_noise("scheduling_dpmsolver_multistep", monkeypatch)

    def step(i: int, t: Tensor, x: Tensor, prediction: Tensor, noise: Tensor) -> Tensor:
        box[:] = [noise]
        return theirs.step(prediction, theirs.timesteps[i], x).prev_sample

    walk(table, step)


@pytest.mark.parametrize("target", ["noise", "v"])
@pytest.mark.parametrize(
    ("spacing", "eta"),
    # diffusers' ancestral scheduler has no Karras spacing.
    [("karras", 0.0), *((spacing, eta) for spacing in ("linspace", "leading", "trailing") for eta in (0.0, 1.0))],
)
def test_euler(target: str, spacing: str, eta: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """diffusers walks in x / signal; eta = 1 is its ancestral form."""
    kind = EulerAncestralDiscreteScheduler if eta else EulerDiscreteScheduler
    options: dict[str, Any] = {} if eta else {"use_karras_sigmas": spacing == "karras"}
    theirs = exact_tables(
        kind(
            prediction_type=PREDICTION[target],
            timestep_spacing="linspace" if spacing == "karras" else spacing,
            **options,
        ),
        LINEAR,
    )
    theirs.set_timesteps(12)
    table = sampler_table(LINEAR, "euler", 12, target=target, spacing=spacing, eta=eta)
    torch.testing.assert_close(table.timesteps.float(), theirs.timesteps.float(), rtol=1e-4, atol=2e-2)
    scale = (1 + theirs.sigmas.double() ** 2).sqrt()
    box = with_noise("scheduling_euler_ancestral_discrete", monkeypatch)

    def step(i: int, t: Tensor, x: Tensor, prediction: Tensor, noise: Tensor) -> Tensor:
        box[:] = [noise.double()]
        theirs.is_scale_input_called = True
        out = theirs.step(prediction.double(), theirs.timesteps[i], x.double() * scale[i]).prev_sample
        return out / scale[i + 1]

    walk(table, step)


@pytest.mark.parametrize("steps", [1, 8, 25])
def test_flow_match_euler(steps: int) -> None:
    schedule = NoiseSchedule.flow()
    theirs = FlowMatchEulerDiscreteScheduler()
    theirs.set_timesteps(steps)
    table = sampler_table(schedule, "euler", steps, target="flow", spacing="linspace")

    def step(i: int, t: Tensor, x: Tensor, prediction: Tensor, noise: Tensor) -> Tensor:
        return theirs.step(prediction, theirs.timesteps[i], x).prev_sample

    walk(table, step)


@pytest.mark.parametrize(
    ("steps", "spacing"),
    [*((n, s) for n in (1, 2, 3, 10, 20) for s in ("linspace", "leading", "trailing")), (3, "karras"), (20, "karras")],
)
@pytest.mark.parametrize("target", PREDICTION)
def test_unipc(steps: int, spacing: str, target: str) -> None:
    """Predictor and corrector of order 2, B_2(h), x0 as the prediction."""
    schedule = NoiseSchedule.cosine()
    theirs = exact_tables(
        UniPCMultistepScheduler(
            beta_schedule="squaredcos_cap_v2",
            prediction_type=PREDICTION[target],
            timestep_spacing="linspace" if spacing == "karras" else spacing,
            use_karras_sigmas=spacing == "karras",
            final_sigmas_type="zero",
        ),
        schedule,
    )
    theirs.set_timesteps(steps)
    theirs.sigmas = theirs.sigmas.double()
    table = sampler_table(schedule, "unipc", steps, target=target, spacing=spacing)
    assert table.uses_previous2 == (steps > 3)
    if spacing == "karras":
        torch.testing.assert_close(table.timesteps.round().long(), theirs.timesteps, atol=1, rtol=0)
        theirs.set_begin_index(0)  # rounding makes the first two times equal, and diffusers would take the second
    else:
        assert table.timesteps.tolist() == theirs.timesteps.tolist()

    def step(i: int, t: Tensor, x: Tensor, prediction: Tensor, noise: Tensor) -> Tensor:
        return theirs.step(prediction, theirs.timesteps[i], x).prev_sample

    walk(table, step)


@pytest.mark.parametrize("steps", [2, 8, 25])
@pytest.mark.parametrize("shift", [1.0, 5.0])
def test_unipc_on_a_flow(steps: int, shift: float) -> None:
    theirs = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=shift)
    theirs.set_timesteps(steps)
    schedule = NoiseSchedule.flow(shift=shift)
    table = sampler_table(schedule, "unipc", steps, target="flow", continuous_time=True)
    torch.testing.assert_close(table.timesteps, theirs.sigmas[:-1], rtol=1e-5, atol=2e-6)
    theirs.sigmas = torch.cat([table.timesteps.double(), torch.zeros(1)])
    theirs.sigmas[0] = 1 - 1e-6

    def step(i: int, t: Tensor, x: Tensor, prediction: Tensor, noise: Tensor) -> Tensor:
        return theirs.step(prediction, theirs.timesteps[i], x).prev_sample

    walk(table, step)


@pytest.mark.parametrize("target", PREDICTION)
@pytest.mark.parametrize(
    ("steps", "spacing"),
    # From the noisiest level to the clearest in one step, a difference of two x0 loses its digits: 6 steps and more.
    [(1, "trailing"), *((n, s) for n in (6, 12) for s in ("linspace", "leading", "trailing", "karras"))],
)
@pytest.mark.parametrize("clipped", [False, True])
def test_heun(target: str, spacing: str, steps: int, clipped: bool) -> None:
    """EDM's second-order sampler; diffusers walks in x / signal and calls the model 2 steps - 1 times, as we do."""
    theirs = exact_tables(
        HeunDiscreteScheduler(
            beta_start=1e-4,
            beta_end=0.02,
            prediction_type=PREDICTION[target],
            timestep_spacing="linspace" if spacing == "karras" else spacing,
            use_karras_sigmas=spacing == "karras",
            clip_sample=clipped,
        ),
        LINEAR,
    )
    theirs.set_timesteps(steps)
    theirs.sigmas = theirs.sigmas.double()
    table = sampler_table(LINEAR, "heun", steps, target=target, spacing=spacing)
    assert table.steps == 2 * steps - 1
    torch.testing.assert_close(table.timesteps.float(), theirs.timesteps, rtol=1e-4, atol=2e-2)
    scale = (1 + theirs.sigmas**2).sqrt()

    def step(i: int, t: Tensor, x: Tensor, prediction: Tensor, noise: Tensor) -> Tensor:
        out = theirs.step(prediction.double(), theirs.timesteps[i], x.double() * scale[i]).prev_sample
        return out / scale[i + 1]

    walk(table, step, clip=1.0 if clipped else None)


@pytest.mark.parametrize("steps", [1, 8, 25])
@pytest.mark.parametrize("shift", [1.0, 3.0, 12.0])
@pytest.mark.parametrize("continuous", [False, True])
def test_flow_shift(steps: int, shift: float, continuous: bool) -> None:
    theirs = FlowMatchEulerDiscreteScheduler(shift=shift)
    theirs.set_timesteps(steps)
    schedule = NoiseSchedule.flow(shift=shift)
    table = sampler_table(schedule, "euler", steps, target="flow", continuous_time=continuous)
    if continuous:
        torch.testing.assert_close(table.timesteps, theirs.sigmas[:-1], rtol=1e-6, atol=1e-7)

    def step(i: int, t: Tensor, x: Tensor, prediction: Tensor, noise: Tensor) -> Tensor:
        return theirs.step(prediction, theirs.timesteps[i], x).prev_sample

    walk(table, step)


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_flow_trailing_is_what_pipelines_pass(shift: float) -> None:
    """sigmas = linspace(1, 1 / n, n), as the pipelines of Stable Diffusion 3 and Flux give them."""
    theirs = FlowMatchEulerDiscreteScheduler(shift=shift)
    theirs.set_timesteps(sigmas=torch.linspace(1, 1 / 7, 7).tolist())
    table = sampler_table(
        NoiseSchedule.flow(shift=shift), "euler", 7, target="flow", spacing="trailing", continuous_time=True
    )
    torch.testing.assert_close(table.timesteps, theirs.sigmas[:-1], rtol=1e-6, atol=1e-7)
    walk(table, lambda i, t, x, prediction, noise: theirs.step(prediction, theirs.timesteps[i], x).prev_sample)


def test_flow_karras() -> None:
    theirs = FlowMatchEulerDiscreteScheduler(use_karras_sigmas=True)
    theirs.set_timesteps(9)
    table = sampler_table(NoiseSchedule.flow(), "euler", 9, target="flow", spacing="karras", continuous_time=True)
    torch.testing.assert_close(table.timesteps, theirs.sigmas[:-1], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("steps", [1, 8])
@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_flow_match_heun(steps: int, shift: float) -> None:
    theirs = FlowMatchHeunDiscreteScheduler(shift=shift)
    theirs.set_timesteps(steps)
    table = sampler_table(NoiseSchedule.flow(shift=shift), "heun", steps, target="flow")

    def step(i: int, t: Tensor, x: Tensor, prediction: Tensor, noise: Tensor) -> Tensor:
        return theirs.step(prediction, theirs.timesteps[i], x).prev_sample

    walk(table, step)


@pytest.mark.parametrize("name", ["ddim", "unipc", "dpmpp_2m"])
def test_leading_with_an_offset(name: str) -> None:
    kinds = {"ddim": DDIMScheduler, "unipc": UniPCMultistepScheduler, "dpmpp_2m": DPMSolverMultistepScheduler}
    theirs = kinds[name](timestep_spacing="leading", steps_offset=1)
    theirs.set_timesteps(20)
    table = sampler_table(LINEAR, name, 20, spacing="leading", steps_offset=1)
    assert table.timesteps.tolist() == theirs.timesteps.tolist()


@pytest.mark.parametrize("target", PREDICTION)
@pytest.mark.parametrize("name", ["unipc", "dpmpp_2m"])
def test_dynamic_thresholding_of_higher_order(target: str, name: str) -> None:
    kinds = {"unipc": UniPCMultistepScheduler, "dpmpp_2m": DPMSolverMultistepScheduler}
    options: dict[str, Any] = {"thresholding": True, "sample_max_value": 3.0, "dynamic_thresholding_ratio": 0.95}
    theirs = exact_tables(kinds[name](prediction_type=PREDICTION[target], **options), LINEAR)
    theirs.set_timesteps(10)
    theirs.sigmas = theirs.sigmas.double()
    table = sampler_table(LINEAR, name, 10, target=target)

    def step(i: int, t: Tensor, x: Tensor, prediction: Tensor, noise: Tensor) -> Tensor:
        return theirs.step(prediction, theirs.timesteps[i], x).prev_sample

    walk(table, step, clip="dynamic", dynamic_ratio=0.95, dynamic_max=3.0)


@pytest.mark.parametrize("name", ["unipc", "heun", "dpmpp_2m"])
@pytest.mark.parametrize("rescale", [0.0, 0.7])
def test_guidance_of_higher_order(name: str, rescale: float) -> None:
    """Every step's guided prediction, rescaled, through both."""
    kinds = {"unipc": UniPCMultistepScheduler, "heun": HeunDiscreteScheduler, "dpmpp_2m": DPMSolverMultistepScheduler}
    theirs = exact_tables(kinds[name](beta_start=1e-4, beta_end=0.02), LINEAR)
    theirs.set_timesteps(8)
    theirs.sigmas = theirs.sigmas.double()
    table = sampler_table(LINEAR, name, 8, spacing="linspace", guidance=lambda done: 7.5 - 5 * done)
    scale = (1 + theirs.sigmas**2).sqrt() if name == "heun" else torch.ones(table.steps + 1, dtype=torch.float64)
    generator = torch.Generator().manual_seed(2)
    x, axes = torch.randn(SHAPE, generator=generator), (1, 2, 3, 4)
    previous = previous2 = None
    for i, t in enumerate(theirs.timesteps):
        cond, uncond = torch.randn(2, *SHAPE, generator=generator) * 0.7
        guided = uncond + table.guidance[i] * (cond - uncond)
        matched = guided * (cond.std(dim=axes, keepdim=True) / guided.std(dim=axes, keepdim=True))
        guided = rescale * matched + (1 - rescale) * guided
        expected = theirs.step(guided.double(), t, x.double() * scale[i]).prev_sample / scale[i + 1]
        x, x0 = vf.ops.sampler_step(
            x, cond, table.coefficients, i, uncond=uncond, guidance_rescale=rescale,
            previous=previous, previous2=previous2,
        )  # fmt: skip
        previous, previous2 = x0, previous
        close(x, expected)


@pytest.mark.parametrize("target", PREDICTION)
@pytest.mark.parametrize("maximum", [1.0, 3.0])
def test_dynamic_thresholding(target: str, maximum: float) -> None:
    theirs = exact_tables(
        DDIMScheduler(
            prediction_type=PREDICTION[target],
            thresholding=True,
            clip_sample=False,
            sample_max_value=maximum,
            dynamic_thresholding_ratio=0.95,
        ),
        LINEAR,
    )
    theirs.set_timesteps(10)
    table = sampler_table(LINEAR, "ddim", 10, target=target)

    def step(i: int, t: Tensor, x: Tensor, prediction: Tensor, noise: Tensor) -> Tensor:
        return theirs.step(prediction, int(t), x).prev_sample

    walk(table, step, clip="dynamic", dynamic_ratio=0.95, dynamic_max=maximum)


@pytest.mark.parametrize("rescale", [0.0, 0.7, 1.0])
def test_guidance_and_its_rescaling(rescale: float) -> None:
    theirs = exact_tables(DDIMScheduler(clip_sample=False), LINEAR)
    theirs.set_timesteps(10)
    table = sampler_table(LINEAR, "ddim", 10, guidance=7.5)
    torch.manual_seed(3)
    x, cond, uncond = torch.randn(3, *SHAPE)
    guided = uncond + 7.5 * (cond - uncond)
    axes = (1, 2, 3, 4)
    matched = guided * (cond.std(dim=axes, keepdim=True) / guided.std(dim=axes, keepdim=True))  # Lin et al., eq. 15
    guided = rescale * matched + (1 - rescale) * guided  # eq. 16
    for i, t in enumerate(theirs.timesteps):
        ours, x0 = vf.ops.sampler_step(x, cond, table.coefficients, i, uncond=uncond, guidance_rescale=rescale)
        reply = theirs.step(guided, int(t), x)
        close(ours, reply.prev_sample)
        close(x0, reply.pred_original_sample)


def test_zero_terminal_snr_with_v() -> None:
    schedule = NoiseSchedule.scaled_linear(zero_terminal_snr=True)
    theirs = exact_tables(
        DDIMScheduler(prediction_type="v_prediction", timestep_spacing="trailing", clip_sample=False), schedule
    )
    theirs.set_timesteps(10)
    table = sampler_table(schedule, "ddim", 10, target="v", spacing="trailing")
    assert table.timesteps[0] == 999
    walk(table, lambda i, t, x, prediction, noise: theirs.step(prediction, int(t), x).prev_sample)


def test_one_step_starts_at_the_noisiest_time() -> None:
    for sampler in ("ddpm", "ddim", "euler", "dpmpp_2m"):
        assert sampler_table(LINEAR, sampler, 1, spacing="linspace").timesteps.tolist() == [999]


def test_every_table_has_the_columns_of_the_op() -> None:
    assert sampler_table(LINEAR, "ddim", 5).coefficients.shape == (5, columns.COLUMNS)
