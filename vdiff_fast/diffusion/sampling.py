"""The sampling loop: noise to video with any sampler, with guidance, on whatever device the model is."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from vdiff_fast import ops
from vdiff_fast.diffusion import _deprecated
from vdiff_fast.diffusion.churn import Churn
from vdiff_fast.diffusion.guidance import Guidance, GuidanceScale
from vdiff_fast.diffusion.guided_model import GuidedModel, Model
from vdiff_fast.diffusion.learned_variance import split_prediction, standard_deviation
from vdiff_fast.diffusion.noise import Noise
from vdiff_fast.diffusion.sampler_table import SamplerTable, sampler_table
from vdiff_fast.diffusion.samplers import Sampler
from vdiff_fast.diffusion.schedule import NoiseSchedule
from vdiff_fast.diffusion.step_graph import StepGraph, StepState
from vdiff_fast.ops.sampler_step import sampler_step

Callback = Callable[[int, Tensor, Tensor], None]


class SamplingInterrupted(KeyboardInterrupt):
    """A sampling run was interrupted: what is done is kept.

    Attributes:
        steps: how many steps ended.
        x: the state after them; `latents=` of a run over the remaining timesteps goes on from it.
        x0: the model's estimate of the finished video, zeros before the first step.
    """

    def __init__(self, steps: int, x: Tensor, x0: Tensor) -> None:
        super().__init__(f"interrupted after {steps} sampling steps")
        self.steps, self.x, self.x0 = steps, x, x0


@contextmanager
def _evaluating(model: Model) -> Iterator[None]:
    """Every submodule in evaluation mode, and back in its own mode after."""
    modules = list(model.modules()) if isinstance(model, nn.Module) else []
    before = [module.training for module in modules]
    try:
        if isinstance(model, nn.Module):
            model.eval()
        yield
    finally:
        for module, mode in zip(modules, before):
            module.training = mode


def _device_of(model: Model, latents: Tensor | None) -> torch.device:
    if latents is not None:
        return latents.device
    parameter = next(model.parameters(), None) if isinstance(model, nn.Module) else None
    if parameter is None or not isinstance(model, nn.Module):
        return torch.device("cpu")
    if parameter.device.type != "meta":
        return parameter.device
    # accelerate keeps an offloaded model's parameters elsewhere until a layer runs, and knows where it will run.
    hooks = (getattr(module, "_hf_hook", None) for module in model.modules())
    devices = (getattr(part, "execution_device", None) for hook in hooks for part in getattr(hook, "hooks", [hook]))
    device = next((found for found in devices if found is not None), None)
    if device is None:
        raise ValueError("the model's parameters are on the meta device; load them, or give `device`")
    return torch.device(device)


def _progress(steps: int, shown: bool) -> Any:
    if not shown:
        return range(steps)
    from tqdm.auto import tqdm

    return tqdm(range(steps), desc="sampling", unit="step")


@torch.no_grad()
def sample(
    model: Model,
    shape: Sequence[int],
    schedule: NoiseSchedule,
    sampler: str | Sampler | SamplerTable = "ddim",
    *,
    steps: int = 50,
    target: str = "noise",
    seed: int | Tensor | Noise = 0,
    y: Tensor | None = None,
    context: Tensor | None = None,
    context_mask: Tensor | None = None,
    cond: Tensor | None = None,
    guidance: GuidanceScale | Guidance = 1.0,
    eta: float = 0.0,
    churn: Churn | None = None,
    variance: str = "fixed_small",
    spacing: str | None = None,
    timesteps: Sequence[float] | Tensor | None = None,
    steps_offset: int = 0,
    continuous_time: bool = False,
    clip: float | str | None = None,
    dynamic_ratio: float = 0.995,
    dynamic_max: float | None = None,
    latents: Tensor | None = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
    callback: Callback | None = None,
    progress: bool = False,
    graph: str | bool = "auto",
    decode: Callable[[Tensor], Tensor] | None = None,
    decode_frames: int = 8,
    **old: Any,
) -> Tensor:
    """x_T ~ N(0, I), then x_prev = update(x, model(x, t)) for every step: a video from noise.

    Noise is counter-based: the same seed gives the same video in any split of the batch (give each part its
    `sample_offset`) and on any number of ranks.

    Args:
        model: model(x, t, *, y=None, context=None, cond=None) -> prediction of `target`, shape of x. Of a prediction of
            twice the channels (DiT: a learned variance) the first half is that, and the second is read by variance
            "learned_range" alone. Inputs that are None are left out of the call. A module is put in evaluation mode for
            the loop.
        shape: (B, C, T, H, W), or any (B, ...).
        schedule: the noise schedule that the model was trained with.
        sampler: "ddpm", "ddim", "dpmpp_2m", "dpmpp_2m_sde", "unipc", "euler", "heun", "mean_flow" (whose model gets
            r= too, where the step ends), a `Sampler` of one's own, or a ready `sampler_table(...)`, which then decides
            all that `sampler_table` is asked for.
        steps, target, eta, churn, variance, spacing, timesteps, steps_offset, continuous_time: see `sampler_table`.
        seed: int, 0-d int64 tensor, or a `Noise`, which also has the batch's `sample_offset` and the correlation of a
            video's frames. Stream 0 is x_T, stream 1 + i the noise of step i.
        y, context, context_mask, cond: the model's inputs: class labels (B,), tokens (B, L, D) and which of them are
            seen (B, L), condition channels.
        guidance: the scale of classifier-free guidance (1 is off), or a `Guidance`, which also has its interval,
            rescaling, the inputs of the unconditional call and how both calls are batched.
        clip, dynamic_ratio, dynamic_max: see `vf.ops.sampler_step`; 1.0 for pixels in [-1, 1].
        latents: x_T to start from instead of noise.
        dtype, device: of x; the device of `latents` or of the model where it is left out.
        callback: called after every step with (step, x, x0); clone what outlives the step, a graph writes in place.
        progress: show a progress bar.
        graph: record the whole step as a CUDA graph and replay it: "auto" (on a CUDA device, eager where the model
            cannot be captured), True (or raise), False. Never on the CPU.
        decode: latents (B, C, n, ...) -> frames (B, C', n, ...), called on `decode_frames` frames at a time.
        **old: fields of `Noise` and `Guidance` under their former names, deprecated: sample_offset,
            frame_correlation, correlation_kind, guidance_interval, guidance_rescale, guidance_batch, uncond.

    Returns:
        The video, `shape`, `dtype`, channels-last memory for rank 4 and 5; what `decode` made of it where given.

    Raises:
        ValueError: an unknown name, a number outside its range, shapes that do not fit.
        SamplingInterrupted: a KeyboardInterrupt, with the x and the estimate of x0 of the last step that ended.

    Source: Ho et al. 2020, algorithm 2.
    """
    guided = _deprecated.with_old_guidance("sample", guidance, old)
    noise = _deprecated.with_old_noise("sample", seed, old)
    _deprecated.refuse_unknown("sample", old)
    device = _device_of(model, latents) if device is None else torch.device(device)
    table = sampler if isinstance(sampler, SamplerTable) else sampler_table(
        schedule, sampler, steps, target=target, eta=eta, churn=churn, variance=variance, spacing=spacing,
        timesteps=timesteps, guidance=guided, steps_offset=steps_offset, continuous_time=continuous_time,
    )  # fmt: skip
    table = table.to(device)
    x = _start(table, noise, shape, latents, dtype, device)
    calls = GuidedModel(model, {"y": y, "context": context, "context_mask": context_mask, "cond": cond}, guided)
    clipping = {"clip": clip, "dynamic_ratio": dynamic_ratio, "dynamic_max": dynamic_max}
    step = _Step(calls, table, noise, guided.rescale, clipping, device)
    state = StepState(x, history=2 if table.uses_previous2 else int(table.uses_previous))
    run = StepGraph(step, state, graph)
    on = [scale != 1 for scale in table.guidance]
    with _evaluating(model):
        calls.prepare(table.timesteps, len(x), guided=any(on), unguided=not all(on), ends=table.ends)
        _loop(run, state, on, callback, progress)
    return state.x if decode is None else decode_in_chunks(decode, state.x, decode_frames)


def _start(
    table: SamplerTable, noise: Noise, shape: Sequence[int], latents: Tensor | None, dtype: torch.dtype,
    device: torch.device,
) -> Tensor:  # fmt: skip
    """x where the first step begins: noise or the caller's latents, after the churn that no step before it makes."""
    if latents is not None and tuple(latents.shape) != tuple(shape):
        raise ValueError(f"latents have shape {tuple(latents.shape)}, the video is to have {tuple(shape)}")
    x = noise.draw(shape, 0, dtype, device) if latents is None else latents.to(device, dtype, copy=True)
    gain, added = table.start
    # The stream is that of a step after the last, which no step draws.
    return gain * x + added * noise.draw(shape, 1 + table.steps, dtype, device) if added else x


class _Step:
    """One sampling step: the model with guidance, then the update, without a word from the host to the device."""

    def __init__(
        self, model: GuidedModel, table: SamplerTable, noise: Noise, rescale: float, clipping: dict[str, Any],
        device: torch.device,
    ) -> None:  # fmt: skip
        self.model, self.table, self.rescale = model, table, rescale
        self.seed, offset = noise.counters(device)
        self.frames = noise.frames()
        self.options = {
            "seed": self.seed if table.draws_noise else None, "sample_offset": offset, **self.frames, **clipping
        }  # fmt: skip

    def __call__(self, state: StepState, guided: bool) -> None:
        time = self.table.timesteps.index_select(0, state.index.reshape(1))[0]
        given, without = self.model(state.x, time, state.index, guided=guided)
        prediction, values = split_prediction(given, state.x)
        unconditional = None if without is None else split_prediction(without, state.x)[0]
        x, x0 = sampler_step(
            state.x, prediction, self.table.coefficients, state.index, uncond=unconditional,
            guidance_rescale=self.rescale if guided else 0.0, previous=state.previous, previous2=state.previous2,
            **self.options,
        )  # fmt: skip
        state.advance(x if self.table.log_variances is None else x + self._learned_noise(state, values), x0)

    def _learned_noise(self, state: StepState, values: Tensor | None) -> Tensor:
        """Noise of the variance that the network predicts for this step (with guidance: the conditional prediction)."""
        if values is None or self.table.log_variances is None:
            raise ValueError(
                f"variance 'learned_range' needs a model that predicts {2 * state.x.shape[1]} channels for the "
                f"{state.x.shape[1]} of x; use 'fixed_small' or 'fixed_large'"
            )
        row = self.table.log_variances.index_select(0, state.index.reshape(1))[0]
        z = ops.noise(
            state.x.shape, self.seed, sample_offset=self.options["sample_offset"], stream=1 + state.index,
            dtype=state.x.dtype, device=state.x.device, **self.frames,
        )  # fmt: skip
        return (standard_deviation(values.to(torch.promote_types(values.dtype, torch.float32)), row) * z).to(z.dtype)


def _loop(run: StepGraph, state: StepState, on: list[bool], callback: Callback | None, progress: bool) -> None:
    done = 0
    try:
        for i in _progress(len(on), progress):
            run(on[i])
            done = i + 1
            if callback is not None:
                callback(i, state.x, state.x0)
    except KeyboardInterrupt as error:
        raise SamplingInterrupted(done, state.x, state.x0) from error


def decode_in_chunks(decode: Callable[[Tensor], Tensor], latents: Tensor, frames: int) -> Tensor:
    """decode(latents[:, :, i : i + frames]) for all i, joined over time: the decoder's memory is that of one chunk.

    Args:
        decode: (B, C, n, ...) -> (B, C', n, ...), frame by frame.
        latents: (B, C, T, ...).
        frames: largest n.

    Raises:
        ValueError: frames < 1, or latents without a time axis.
    """
    if frames < 1 or latents.dim() < 3:
        raise ValueError(
            f"decode needs latents (B, C, T, ...) and decode_frames >= 1, got {latents.dim()} axes, {frames}"
        )
    parts = [decode(chunk) for chunk in latents.split(frames, dim=2)]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)
