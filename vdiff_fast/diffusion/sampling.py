"""The sampling loop: noise to video with any sampler, with guidance, on whatever device the model is."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vdiff_fast.diffusion.sampler_table import SamplerTable, sampler_table
from vdiff_fast.diffusion.schedule import NoiseSchedule
from vdiff_fast.ops.noise import noise
from vdiff_fast.ops.sampler_step import sampler_step

Model = Callable[..., Tensor]
Callback = Callable[[int, Tensor, Tensor], None]


@dataclass(frozen=True)
class _Guided:
    """A model with its inputs: the prediction with and without the condition."""

    model: Model
    inputs: dict[str, Tensor]
    uncond_inputs: dict[str, Tensor]
    batched: bool

    def __call__(self, x: Tensor, t: Tensor, guided: bool) -> tuple[Tensor, Tensor | None]:
        if not guided:
            return self.model(x, t.expand(len(x)), **self.inputs), None
        if not self.batched:
            prediction, _ = self(x, t, guided=False)
            return prediction, self.model(x, t.expand(len(x)), **self.uncond_inputs)
        both = {name: torch.cat([value, self.uncond_inputs[name]]) for name, value in self.inputs.items()}
        prediction, uncond = self.model(torch.cat([x, x]), t.expand(2 * len(x)), **both).chunk(2)
        return prediction, uncond


def _guided_model(
    model: Model, inputs: Mapping[str, Any], uncond: Mapping[str, Any] | None, batched: bool | None
) -> _Guided:
    """Pair the inputs: an int among the unconditional ones fills the shape of its partner; the rest is shared."""
    given = {name: value for name, value in inputs.items() if value is not None}
    replaced = dict.fromkeys(("y", "context")) if uncond is None else dict(uncond)
    unknown = set(replaced) - set(inputs)
    if unknown:
        raise ValueError(f"uncond has {', '.join(sorted(unknown))}; it may name {', '.join(inputs)}")
    for name, value in replaced.items():
        if isinstance(value, int) and name in given:
            replaced[name] = torch.full_like(given[name], value)
    without = {name: value for name, value in (given | replaced).items() if value is not None}
    pairs = given.keys() == without.keys() and all(given[name].shape == without[name].shape for name in given)
    if batched and not pairs:
        raise ValueError(
            "batch_guidance needs an unconditional tensor of the same shape for every input, for example "
            f"uncond={{'y': null_class}}; got {sorted(without)} for {sorted(given)}"
        )
    return _Guided(model, given, without, batched=pairs if batched is None else batched)


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
    guidance: float | Sequence[float] = 1.0,
    guidance_rescale: float = 0.0,
    uncond: Mapping[str, Tensor | int | None] | None = None,
    batch_guidance: bool | None = None,
    eta: float = 0.0,
    spacing: str | None = None,
    timesteps: Sequence[float] | Tensor | None = None,
    clip: float | str | None = None,
    dynamic_ratio: float = 0.995,
    dynamic_max: float | None = None,
    latents: Tensor | None = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
    callback: Callback | None = None,
    progress: bool = False,
) -> Tensor:
    """x_T ~ N(0, I), then x_prev = update(x, model(x, t)) for every step: a video from noise.

    Noise is counter-based: the same seed gives the same video in any split of the batch (give each part its
    `sample_offset`) and on any number of ranks.

    Args:
        model: model(x, t, *, y=None, context=None, cond=None) -> prediction of `target`, shape of x. Inputs that are
            None are left out of the call. A module is put in evaluation mode for the loop.
        shape: (B, C, T, H, W), or any (B, ...).
        schedule: the noise schedule that the model was trained with.
        sampler: "ddpm", "ddim", "dpmpp_2m", "dpmpp_2m_sde", "euler", or a ready `sampler_table(...)`, which then
            decides steps, target, guidance, eta, spacing and timesteps.
        steps, target, eta, spacing, timesteps: see `sampler_table`.
        seed: int or 0-d int64 tensor. Stream 0 is x_T, stream 1 + i the noise of step i.
        sample_offset: index of this call's first sample in the whole batch.
        y, context, cond: the model's inputs: class labels (B,), tokens (B, L, D), condition channels.
        guidance: scale of classifier-free guidance: 1 is off; one number or one per step (steps of scale 1 cost one
            call of the model).
        guidance_rescale: see `vf.ops.sampler_step`.
        uncond: inputs of the unconditional call that differ from the conditional one's; None leaves an input out, an
            int fills a tensor like its partner (the null class). By default y and context are left out.
        batch_guidance: one call of the model on the doubled batch (True) or two (False: half the memory); by default
            one, where every input has an unconditional tensor of the same shape.
        clip, dynamic_ratio, dynamic_max: see `vf.ops.sampler_step`; 1.0 for pixels in [-1, 1].
        latents: x_T to start from instead of noise.
        dtype, device: of x; the device of `latents` or of the model where it is left out.
        callback: called after every step with (step, x, x0).
        progress: show a progress bar.

    Returns:
        The video, `shape`, `dtype`, channels-last memory for rank 4 and 5.

    Raises:
        ValueError: an unknown name, a number outside its range, shapes that do not fit.

    Source: Ho et al. 2020, algorithm 2.
    """
    device = _device_of(model, latents) if device is None else torch.device(device)
    if isinstance(sampler, SamplerTable):
        table = sampler.to(device)
    else:
        table = sampler_table(
            schedule, sampler, steps, target=target, eta=eta, spacing=spacing, timesteps=timesteps, guidance=guidance
        ).to(device)
    if latents is None:
        x = noise(shape, seed, sample_offset=sample_offset, dtype=dtype, device=device)
    elif tuple(latents.shape) != tuple(shape):
        raise ValueError(f"latents have shape {tuple(latents.shape)}, the video is to have {tuple(shape)}")
    else:
        x = latents.to(device, dtype)
    guided = _guided_model(model, {"y": y, "context": context, "cond": cond}, uncond, batch_guidance)
    # 0-d views of device tensors: a step launches nothing to say which step it is.
    index = torch.arange(table.steps, device=device)
    key = torch.as_tensor(seed, dtype=torch.int64, device=device) if table.draws_noise else None
    offset = torch.full((), sample_offset, dtype=torch.int64, device=device)
    x0 = None
    with _evaluating(model):
        for i in _progress(table.steps, progress):
            on = table.guidance[i] != 1
            prediction, unconditional = guided(x, table.timesteps[i], guided=on)
            x, x0 = sampler_step(
                x,
                prediction,
                table.coefficients,
                index[i],
                uncond=unconditional,
                guidance_rescale=guidance_rescale if on else 0.0,
                clip=clip,
                dynamic_ratio=dynamic_ratio,
                dynamic_max=dynamic_max,
                previous=x0 if table.uses_previous else None,
                seed=key,
                sample_offset=offset,
            )
            if callback is not None:
                callback(i, x, x0)
    return x
