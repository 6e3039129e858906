"""Public function: errors, backend choice, autograd."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vdiff_fast import _derivatives, _dispatch, layout
from vdiff_fast.ops._common.frames import INDEPENDENT, FrameArguments, checked_frames
from vdiff_fast.ops._common.random import check_noise_source, counter_word, seed_tensor
from vdiff_fast.ops._common.schedule import (
    Schedule,
    Tables,
    check_timesteps,
    coefficients,
    per_sample,
    schedule_constants,
)
from vdiff_fast.ops._common.videos import check_values, check_video
from vdiff_fast.ops.q_sample import reference

PREDICATES = _dispatch.predicates(__package__)
_KERNELS = _dispatch.kernel_modules(__package__)


class _QSample(torch.autograd.Function):
    @staticmethod
    def forward(
        x0: Tensor,
        noise: Tensor | None,
        t: Tensor,
        signal: Tensor,
        noise_scale: Tensor,
        seed: Tensor | None,
        sample_offset: Tensor | None,
        stream: Tensor | None,
        frames: FrameArguments,
        backend: str,
    ) -> Tensor:
        return _KERNELS[backend].q_sample(x0, t, signal, noise_scale, noise, seed, sample_offset, stream, *frames)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, noise, t, signal, noise_scale, _, _, _, _, ctx.backend = inputs
        ctx.noise_dtype = None if noise is None else noise.dtype
        ctx.channels_last = not output.is_contiguous()
        ctx.save_for_backward(t, signal, noise_scale)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        t, signal, noise_scale = ctx.saved_tensors
        if _derivatives.continued():
            # The step is linear in x0 and in noise.
            schedule = Tables.read_by(t, signal, noise_scale)
            of_x0, of_noise = coefficients(schedule, t, torch.promote_types(dy.dtype, torch.float32))
            of_inputs = ((of_x0, dy.dtype), (of_noise, ctx.noise_dtype))
            found = (None if dtype is None else (per_sample(c, dy) * dy).to(dtype) for c, dtype in of_inputs)
            return *found, *[None] * 8
        kernel = _KERNELS[ctx.backend].q_sample
        dy = layout.channels_last(dy) if ctx.channels_last else dy.contiguous()
        dx0 = dnoise = None
        if ctx.needs_input_grad[0]:
            dx0 = kernel(dy, t, signal, noise_scale, None, None, None, None, *INDEPENDENT)
        if ctx.needs_input_grad[1]:
            # The noise's coefficient in the signal's place: of a flow's t that is 1 - t.
            other = 1 - t if t.is_floating_point() else t
            dnoise = kernel(dy, other, noise_scale, signal, None, None, None, None, *INDEPENDENT).to(ctx.noise_dtype)
        return dx0, dnoise, *[None] * 8


def q_sample(
    x0: Tensor,
    t: Tensor,
    schedule: Schedule,
    *,
    noise: Tensor | None = None,
    seed: int | Tensor | None = None,
    sample_offset: int | Tensor = 0,
    stream: int | Tensor = 0,
    check_finite: bool = False,
    frame_correlation: float = 0.0,
    correlation_kind: str = "mixed",
) -> Tensor:
    """x_t = sqrt(alpha_bar[t]) x0 + sqrt(1 - alpha_bar[t]) noise; for a flow schedule x_t = (1 - s) x0 + s noise.

    `q_sample(x0, t, schedule, seed=s)` equals `q_sample(x0, t, schedule, noise=noise(x0.shape, s))`.

    Args:
        x0: (B, ...), contiguous or channels-last (one copy otherwise); float32, bfloat16, float16 (float64 on CPU).
        t: (B,) int64 steps, or for a flow schedule floats s in [0, 1].
        schedule: float32 tables on the device of x0 (see `vdiff_fast.ops._common.schedule.Schedule`).
        noise: of x0's shape; drawn in the kernel and never stored where `seed` is given instead.
        seed, sample_offset, stream: what `vdiff_fast.ops.noise` takes.
        frame_correlation, correlation_kind: of the drawn noise of a video's frames, see `vdiff_fast.ops.noise`.
        check_finite: read x0 first and raise on NaN or Inf; eager CPU tensors only, one more pass over x0.

    Returns:
        x_t with the shape, dtype and memory layout of x0, computed in float32. Reads x0 and writes x_t; saves t alone.

    Raises:
        TypeError: x0 or noise is not floating point, or t, seed, sample_offset or stream has a wrong type.
        ValueError: noise and seed are both given or both left out; shapes or devices differ; a value of t is out of
            range (eager CPU tensors; elsewhere that sample becomes NaN); x0 is not finite with `check_finite`.

    Source: Ho, Jain and Abbeel 2020, "Denoising diffusion probabilistic models", eq. 4; Liu, Gong and Liu 2022,
    "Flow straight and fast".
    """
    check_video("q_sample", "x0", x0)
    check_noise_source("q_sample", x0, noise, seed)
    frames = checked_frames("q_sample", x0.shape, frame_correlation, correlation_kind)
    check_timesteps("q_sample", t, schedule, x0)
    if check_finite:
        check_values("q_sample", "x0", x0)
    key = None if seed is None else seed_tensor("q_sample", seed, x0.device)
    offset = counter_word("q_sample", "sample_offset", sample_offset, x0.device)
    word = counter_word("q_sample", "stream", stream, x0.device)
    backend = _dispatch.choose("q_sample", PREDICATES, x0, constants=schedule_constants(t, schedule))
    if backend == "reference":
        return _dispatch.call_reference(
            reference.q_sample, x0, t, schedule, noise=noise, seed=key, sample_offset=offset, stream=word,
            frame_correlation=frame_correlation, correlation_kind=correlation_kind,
        )  # fmt: skip
    x0 = layout.native(x0)
    if noise is not None:
        noise = layout.laid_out_like(noise if noise.dtype == torch.float32 else noise.to(x0.dtype), x0)
    steps = t.float() if t.is_floating_point() else t
    signal, noise_scale = schedule.sqrt_alphas_cumprod, schedule.sqrt_one_minus_alphas_cumprod
    steps = steps.contiguous()
    return _dispatch.apply(_QSample, x0, noise, steps, signal, noise_scale, key, offset, word, frames, backend)
