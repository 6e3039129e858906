"""The sampling loop: noise to video with any sampler, with guidance, on whatever device the model is."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from vdiff_fast.diffusion.churn import Churn
from vdiff_fast.diffusion.guided_model import GuidedModel, Model
from vdiff_fast.diffusion.sampler_table import Guidance, SamplerTable, sampler_table
from vdiff_fast.diffusion.schedule import NoiseSchedule
from vdiff_fast.diffusion.step_graph import StepGraph, StepState
from vdiff_fast.ops.noise import noise
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
    return torch.device("cpu") if parameter is None else parameter.device


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
    sampler: str | SamplerTable = "ddim",
    *,
    steps: int = 50,
    target: str = "noise",
    seed: int | Tensor = 0,
    sample_offset: int = 0,
    y: Tensor | None = None,
    context: Tensor | None = None,
    cond: Tensor | None = None,
    guidance: Guidance = 1.0,
    guidance_interval: tuple[float, float] | None = None,
    guidance_rescale: float = 0.0,
    uncond: Mapping[str, Tensor | int | None] | None = None,
    guidance_batch: str = "auto",
    eta: float = 0.0,
    churn: Churn | None = None,
    frame_correlation: float = 0.0,
    correlation_kind: str = "mixed",
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
) -> Tensor:
    """x_T ~ N(0, I), then x_prev = update(x, model(x, t)) for every step: a video from noise.

    Noise is counter-based: the same seed gives the same video in any split of the batch (give each part its
    `sample_offset`) and on any number of ranks.

    Args:
        model: model(x, t, *, y=None, context=None, cond=None) -> prediction of `target`, shape of x. Inputs that are
            None are left out of the call. A module is put in evaluation mode for the loop.
        shape: (B, C, T, H, W), or any (B, ...).
        schedule: the noise schedule that the model was trained with.
        sampler: "ddpm", "ddim", "dpmpp_2m", "dpmpp_2m_sde", "unipc", "euler", "heun", or a ready `sampler_table(...)`,
            which then decides all that `sampler_table` is asked for.
        steps, target, eta, churn, spacing, timesteps, steps_offset, continuous_time, guidance_interval: see
            `sampler_table`.
        seed: int or 0-d int64 tensor. Stream 0 is x_T, stream 1 + i the noise of step i.
        sample_offset: index of this call's first sample in the whole batch.
        frame_correlation, correlation_kind: of the noise of a video's frames, see `vf.ops.noise`.
        y, context, cond: the model's inputs: class labels (B,), tokens (B, L, D), condition channels.
        guidance: scale of classifier-free guidance: 1 is off; one number, one per step or a function of the share
            done (steps of scale 1 cost one call of the model).
        guidance_rescale: see `vf.ops.sampler_step`.
        uncond: inputs of the unconditional call that differ from the conditional one's; None leaves an input out, an
            int fills a tensor like its partner (the null class). By default y and context are left out.
        guidance_batch: "joint" calls the model once on the doubled batch, "split" twice (half the memory); "auto" is
            joint where every input has an unconditional tensor of the same shape, until a device runs out of memory.
        clip, dynamic_ratio, dynamic_max: see `vf.ops.sampler_step`; 1.0 for pixels in [-1, 1].
        latents: x_T to start from instead of noise.
        dtype, device: of x; the device of `latents` or of the model where it is left out.
        callback: called after every step with (step, x, x0); clone what outlives the step, a graph writes in place.
        progress: show a progress bar.
        graph: record the whole step as a CUDA graph and replay it: "auto" (on a CUDA device, eager where the model
            cannot be captured), True (or raise), False. Never on the CPU.
        decode: latents (B, C, n, ...) -> frames (B, C', n, ...), called on `decode_frames` frames at a time.

    Returns:
        The video, `shape`, `dtype`, channels-last memory for rank 4 and 5; what `decode` made of it where given.

    Raises:
        ValueError: an unknown name, a number outside its range, shapes that do not fit.
        SamplingInterrupted: a KeyboardInterrupt, with the x and the estimate of x0 of the last step that ended.

    Source: Ho et al. 2020, algorithm 2.
    """
    device = _device_of(model, latents) if device is None else torch.device(device)
    if isinstance(sampler, SamplerTable):
        table = sampler.to(device)
    else:
        table = sampler_table(
            schedule, sampler, steps, target=target, eta=eta, churn=churn, spacing=spacing, timesteps=timesteps,
            guidance=guidance, guidance_interval=guidance_interval, steps_offset=steps_offset,
            continuous_time=continuous_time,
        ).to(device)  # fmt: skip
    if latents is None:
        x = noise(
            shape, seed, sample_offset=sample_offset, dtype=dtype, device=device,
            frame_correlation=frame_correlation, correlation_kind=correlation_kind,
        )  # fmt: skip
    elif tuple(latents.shape) != tuple(shape):
        raise ValueError(f"latents have shape {tuple(latents.shape)}, the video is to have {tuple(shape)}")
    else:
        x = latents.to(device, dtype, copy=True)
    gain, added = table.start
    if added:
        # The stream of a step after the last, which none draws.
        z = noise(
            shape, seed, sample_offset=sample_offset, stream=1 + table.steps, dtype=dtype, device=device,
            frame_correlation=frame_correlation, correlation_kind=correlation_kind,
        )  # fmt: skip
        x = gain * x + added * z
    guided = GuidedModel(model, {"y": y, "context": context, "cond": cond}, uncond, guidance_batch)
    on = [scale != 1 for scale in table.guidance]
    # 0-d tensors on the device: a step says which one it is without a word from the host.
    key = torch.as_tensor(seed, dtype=torch.int64, device=device) if table.draws_noise else None
    offset = torch.full((), sample_offset, dtype=torch.int64, device=device)

    def step(state: StepState, with_guidance: bool) -> None:
        time = table.timesteps.index_select(0, state.index.reshape(1))[0]
        prediction, unconditional = guided(state.x, time, state.index, guided=with_guidance)
        state.advance(
            *sampler_step(
                state.x,
                prediction,
                table.coefficients,
                state.index,
                uncond=unconditional,
                guidance_rescale=guidance_rescale if with_guidance else 0.0,
                clip=clip,
                dynamic_ratio=dynamic_ratio,
                dynamic_max=dynamic_max,
                previous=state.previous,
                previous2=state.previous2,
                seed=key,
                sample_offset=offset,
                frame_correlation=frame_correlation,
                correlation_kind=correlation_kind,
            )
        )

    state = StepState(x, history=2 if table.uses_previous2 else int(table.uses_previous))
    run = StepGraph(step, state, graph)
    with _evaluating(model):
        guided.prepare(table.timesteps, len(x), guided=any(on), unguided=not all(on))
        _loop(run, state, on, callback, progress)
    return state.x if decode is None else decode_in_chunks(decode, state.x, decode_frames)


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
