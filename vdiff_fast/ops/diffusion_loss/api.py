"""Public function: errors, backend choice, autograd."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from vdiff_fast import _derivatives, _dispatch, layout
from vdiff_fast.ops._common.frames import checked_frames
from vdiff_fast.ops._common.random import check_noise_source, counter_word, seed_tensor
from vdiff_fast.ops._common.schedule import Schedule, Tables, check_timesteps, per_sample, schedule_constants
from vdiff_fast.ops._common.targets import TARGETS
from vdiff_fast.ops._common.videos import check_values, check_video
from vdiff_fast.ops.diffusion_loss import reference
from vdiff_fast.ops.diffusion_loss.config import gradient_first
from vdiff_fast.ops.noise import reference as noise_reference

PREDICATES = _dispatch.predicates(__package__)
_KERNELS = _dispatch.kernel_modules(__package__)
CHOICES = {
    "target": tuple(TARGETS),
    "weighting": ("uniform", "min_snr"),
    "reduction": ("mean", "none"),
    "kind": ("mse", "huber"),
}


class _RedrawnLoss(torch.autograd.Function):
    """Saves prediction; the backward draws the noise again and rounds the gradient once."""

    @staticmethod
    def forward(
        prediction: Tensor,
        x0: Tensor | None,
        noise: Tensor | None,
        t: Tensor,
        signal: Tensor,
        noise_scale: Tensor,
        seed: Tensor | None,
        sample_offset: Tensor | None,
        stream: Tensor | None,
        options: tuple[Any, ...],
        mean: bool,
        backend: str,
    ) -> Tensor:
        source = (x0, noise, t, signal, noise_scale, seed, sample_offset, stream)
        return _KERNELS[backend].loss(prediction, *source, *options, mean)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        *tensors, ctx.options, ctx.mean, ctx.backend = inputs
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        tensors = ctx.saved_tensors
        if _derivatives.continued():
            return _formula_gradients(tensors, ctx.options, ctx.mean, upstream)
        gradients: list[Tensor | None] = [None] * 3
        for i, of in enumerate(("prediction", "x0", "noise")):
            if ctx.needs_input_grad[i]:
                gradient = _KERNELS[ctx.backend].backward(upstream.contiguous(), *tensors, *ctx.options, of)
                gradients[i] = gradient.to(tensors[i].dtype)
        return *gradients, *[None] * 9


class _GradientFirstLoss(torch.autograd.Function):
    """Saves the gradient that the forward's one pass wrote; the backward scales it, unless the scale is one.

    The inputs are kept for a derivative of this gradient alone, as eager keeps them; the noise is drawn again.
    """

    @staticmethod
    def forward(
        prediction: Tensor,
        x0: Tensor | None,
        noise: Tensor | None,
        t: Tensor,
        signal: Tensor,
        noise_scale: Tensor,
        seed: Tensor | None,
        sample_offset: Tensor | None,
        stream: Tensor | None,
        options: tuple[Any, ...],
        mean: bool,
        backend: str,
    ) -> tuple[Tensor, Tensor]:
        source = (x0, noise, t, signal, noise_scale, seed, sample_offset, stream)
        return _KERNELS[backend].loss_and_gradient(prediction, *source, *options, mean)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        ctx.mark_non_differentiable(output[1])
        ctx.set_materialize_grads(False)  # else the backward fills zeros for the second output
        *tensors, ctx.options, ctx.mean, _ = inputs
        ctx.save_for_backward(output[1], *tensors)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor | None, _: Tensor | None) -> tuple[Tensor | None, ...]:
        if upstream is None:
            return (None,) * 12
        gradient, *tensors = ctx.saved_tensors
        if _derivatives.continued():
            return _formula_gradients(tensors, ctx.options, ctx.mean, upstream)
        if not _derivatives.values_readable(upstream) or not bool((upstream == 1).all()):
            gradient = gradient * (per_sample(upstream, gradient) if upstream.dim() else upstream)
        return gradient, *[None] * 11


def _formula_gradients(
    tensors: Sequence[Tensor | None], options: tuple[Any, ...], mean: bool, upstream: Tensor
) -> tuple[Tensor | None, ...]:
    """Gradients of prediction, x0 and noise by the reference's formula; None for the rest of a Function's inputs."""
    operands, source = tensors[:3], tensors[3:]
    formula = partial(_formula, source, options, mean)
    return *_derivatives.gradients(formula, operands, upstream), *[None] * 9


def _formula(
    source: Sequence[Any],
    options: tuple[Any, ...],
    mean: bool,
    prediction: Tensor,
    x0: Tensor | None,
    noise: Tensor | None,
) -> Tensor:
    """The reference of what the kernels take; an operand that the target lacks has the coefficient 0."""
    t, signal, noise_scale, seed, sample_offset, stream = source
    target, weighting, gamma, kind, delta, *frames = options
    shape, dtype = prediction.shape, torch.promote_types(prediction.dtype, torch.float32)
    if noise is None and target != "x0":
        words = (seed, sample_offset, stream, shape[0], math.prod(shape[1:]), dtype)
        noise = noise_reference.shaped(noise_reference.normals(*words, *frames), shape)
    return reference.diffusion_loss(
        prediction, torch.zeros_like(prediction) if x0 is None else x0, t, Tables.read_by(t, signal, noise_scale),
        noise=torch.zeros_like(prediction) if noise is None else noise, target=target, weighting=weighting,
        gamma=gamma, reduction="mean" if mean else "none", kind=kind, delta=delta,
    )  # fmt: skip


def diffusion_loss(
    prediction: Tensor,
    x0: Tensor,
    t: Tensor,
    schedule: Schedule,
    *,
    target: str = "noise",
    noise: Tensor | None = None,
    seed: int | Tensor | None = None,
    sample_offset: int | Tensor = 0,
    stream: int | Tensor = 0,
    weighting: str = "uniform",
    gamma: float = 5.0,
    reduction: str = "mean",
    kind: str = "mse",
    delta: float = 1.0,
    check_finite: bool = False,
    frame_correlation: float = 0.0,
    correlation_kind: str = "mixed",
) -> Tensor:
    """L[b] = w(t[b]) mean_e l(prediction - target), target = noise, v = a noise - b x0, x0, or flow = noise - x0.

    a = sqrt(alpha_bar), b = sqrt(1 - alpha_bar) (flow: a = 1 - s, b = s); l(d) = d^2, or Huber's d^2/2 for |d| <= delta
    and delta (|d| - delta/2) beyond. w = 1, or min-SNR-gamma with snr = a^2/b^2, m = min(snr, gamma): noise m/snr,
    v m/(snr + 1), x0 m, flow m b^2/(a + b)^2, each with its limit at zero terminal SNR (noise 1, the others 0).

    Args:
        prediction: (B, ...) float32, bfloat16, float16 (float64 on CPU); contiguous or channels-last, else one copy.
        x0: of prediction's shape; a copy is made where its layout differs from prediction's.
        t: (B,) int64 steps, or for a flow schedule floats s in [0, 1].
        schedule: float32 tables on the device of x0 (see `vdiff_fast.ops._common.schedule.Schedule`).
        target: what the model predicts, "noise", "v", "x0" or "flow".
        noise: the noise of q_sample; drawn again in the kernel, never stored, where `seed` is given instead.
        seed, sample_offset, stream: those q_sample took.
        weighting: "uniform" or "min_snr", with `gamma` > 0.
        reduction: "mean" over the batch, or "none" for the loss of each sample.
        kind: "mse" or "huber", with `delta` > 0.
        frame_correlation, correlation_kind: those q_sample took.
        check_finite: read x0 first and raise on NaN or Inf; eager CPU tensors only, one more pass over x0.

    Returns:
        float32 (float64 for float64), () or (B,). Summed in a fixed order. Reads prediction, and x0 unless the target
        is the noise; writes the gradient of prediction once.

    Raises:
        TypeError: prediction, x0 or noise is not floating point, or t, seed, sample_offset or stream has a wrong type.
        ValueError: prediction, x0 and noise differ in shape or device; noise and seed are both given or both left out;
            an option is unknown; gamma or delta is not positive; a value of t is out of range (eager CPU tensors;
            elsewhere the loss of that sample is NaN); x0 is not finite with `check_finite`.

    Source: Ho et al. 2020, eq. 14; Salimans and Ho 2022 (v); Hang et al. 2023, "Efficient diffusion training via
    min-SNR weighting strategy"; Lin et al. 2024 (zero terminal SNR); Liu et al. 2022 (flow).
    """
    check_video("diffusion_loss", "prediction", prediction)
    check_video("diffusion_loss", "x0", x0)
    _check_options(gamma, delta, target=target, weighting=weighting, reduction=reduction, kind=kind)
    if prediction.shape != x0.shape:
        raise ValueError(
            f"diffusion_loss: prediction has shape {tuple(prediction.shape)}, but x0 has {tuple(x0.shape)}; "
            "a model that also predicts a variance must be split first"
        )
    if prediction.device != x0.device:
        raise ValueError(f"diffusion_loss: prediction is on {prediction.device}, but x0 is on {x0.device}")
    check_noise_source("diffusion_loss", x0, noise, seed)
    frames = checked_frames("diffusion_loss", x0.shape, frame_correlation, correlation_kind)
    check_timesteps("diffusion_loss", t, schedule, x0)
    if check_finite:
        check_values("diffusion_loss", "x0", x0)
    key = None if seed is None else seed_tensor("diffusion_loss", seed, x0.device)
    offset = counter_word("diffusion_loss", "sample_offset", sample_offset, x0.device)
    word = counter_word("diffusion_loss", "stream", stream, x0.device)
    constants = schedule_constants(t, schedule)
    backend = _dispatch.choose("diffusion_loss", PREDICATES, prediction, constants=constants)
    if backend == "reference":
        return _dispatch.call_reference(
            reference.diffusion_loss, prediction, x0, t, schedule, target=target, noise=noise, seed=key,
            sample_offset=offset, stream=word, weighting=weighting, gamma=gamma, reduction=reduction, kind=kind,
            delta=delta, frame_correlation=frame_correlation, correlation_kind=correlation_kind,
        )  # fmt: skip
    prediction = layout.native(prediction)
    used_x0, used_noise = _operands(prediction, x0 if target != "noise" else None, noise if target != "x0" else None)
    tables = schedule.sqrt_alphas_cumprod, schedule.sqrt_one_minus_alphas_cumprod
    steps = (t.float() if t.is_floating_point() else t).contiguous()
    arguments = (prediction, used_x0, used_noise, steps, *tables, key, offset, word)
    options = (target, weighting, gamma, kind, delta, *frames)
    if not any(o is not None and o.requires_grad for o in (prediction, used_x0, used_noise)):
        return _KERNELS[backend].loss(*arguments, *options, reduction == "mean")
    if gradient_first(backend, prediction, used_x0, used_noise):
        return _dispatch.apply(_GradientFirstLoss, *arguments, options, reduction == "mean", backend)[0]
    return _dispatch.apply(_RedrawnLoss, *arguments, options, reduction == "mean", backend)


def _operands(prediction: Tensor, x0: Tensor | None, noise: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
    """x0 and noise in prediction's layout and one dtype: prediction's, or float32 where either differs from it."""
    dtype = prediction.dtype
    if dtype != torch.float64 and any(o is not None and o.dtype != dtype for o in (x0, noise)):
        dtype = torch.float32
    converted = [None if o is None else layout.laid_out_like(o.to(dtype), prediction) for o in (x0, noise)]
    return converted[0], converted[1]


def _check_options(gamma: float, delta: float, **options: str) -> None:
    for name, value in options.items():
        if value not in CHOICES[name]:
            raise ValueError(f"diffusion_loss: {name} must be one of {', '.join(CHOICES[name])}, got {value!r}")
    for name, number in (("gamma", gamma), ("delta", delta)):
        if not 0 < number < math.inf:
            raise ValueError(f"diffusion_loss: {name} must be positive and finite, got {number}")
