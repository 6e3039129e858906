"""Public function: errors and backend choice."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from vdiff_fast import _derivatives, _dispatch, layout
from vdiff_fast.ops._common.frames import checked_frames
from vdiff_fast.ops._common.random import counter_word, seed_tensor
from vdiff_fast.ops.sampler_step import columns, reference
from vdiff_fast.ops.sampler_step.native import Call

_KERNELS = _dispatch.kernel_modules(__package__)
PREDICATES = _dispatch.predicates(__package__)


def _check_tensors(x: Tensor, table: Tensor, others: dict[str, Tensor | None]) -> None:
    if not x.is_floating_point():
        raise TypeError(f"sampler_step: x must be floating point, got {x.dtype}")
    if x.dim() < 1:
        raise ValueError("sampler_step: x must be (B, ...), got a 0-d tensor")
    if table.dim() != 2 or table.shape[1] != columns.COLUMNS or table.dtype not in (torch.float32, torch.float64):
        raise ValueError(
            f"sampler_step: table must be (steps, {columns.COLUMNS}) float32, got {tuple(table.shape)} {table.dtype}; "
            "vf.diffusion.sampler_table makes one"
        )
    for name, tensor in (("table", table), *others.items()):
        if tensor is None:
            continue
        if tensor.device != x.device:
            raise ValueError(f"sampler_step: {name} is on {tensor.device}, but x is on {x.device}")
        if name != "table" and not tensor.is_floating_point():
            raise TypeError(f"sampler_step: {name} must be floating point, got {tensor.dtype}")
        if name != "table" and tensor.shape != x.shape:
            raise ValueError(f"sampler_step: {name} has shape {tuple(tensor.shape)}, but x has {tuple(x.shape)}")


def _check_options(
    uncond: Tensor | None, rescale: float, clip: float | str | None, ratio: float, maximum: float | None
) -> None:
    if rescale and uncond is None:
        raise ValueError(f"sampler_step: guidance_rescale {rescale} needs uncond=, the unconditional prediction")
    if not 0 <= rescale <= 1:
        raise ValueError(f"sampler_step: guidance_rescale must be within [0, 1], got {rescale}")
    if isinstance(clip, str):
        if clip != "dynamic":
            raise ValueError(f"sampler_step: clip must be None, a number > 0 or 'dynamic', got {clip!r}")
        if not 0 < ratio <= 1:
            raise ValueError(f"sampler_step: dynamic_ratio must be within (0, 1], got {ratio}")
        if maximum is not None and maximum < 1:
            raise ValueError(f"sampler_step: dynamic_max must be >= 1, got {maximum}")
    elif clip is not None and not clip > 0:
        raise ValueError(f"sampler_step: clip must be None, a number > 0 or 'dynamic', got {clip}")


def _check_values(
    table: Tensor, step: Tensor, previous: Tensor | None, previous2: Tensor | None, has_noise: bool
) -> None:
    """What only the values can tell; on a GPU and in traced code these cases give NaN instead."""
    index = int(step)
    if not 0 <= index < table.shape[0]:
        raise ValueError(f"sampler_step: step {index} is not within the table's {table.shape[0]} steps")
    row = table[index].tolist()
    if previous is None and row[columns.PREVIOUS] != 0:
        raise ValueError(f"sampler_step: step {index} of this table uses the x0 of the step before: give previous=")
    if previous2 is None and row[columns.PREVIOUS2] != 0:
        raise ValueError(f"sampler_step: step {index} of this table uses the x0 of two steps before: give previous2=")
    if not has_noise and row[columns.NOISE] != 0:
        raise ValueError(f"sampler_step: step {index} of this table adds noise: give seed= or noise=")


def _word(name: str, value: int | Tensor, x: Tensor) -> Tensor:
    """A 0-d int64 tensor on the device of x, so that one compiled graph serves every step."""
    word = counter_word("sampler_step", name, value, x.device)
    return torch.zeros((), dtype=torch.int64, device=x.device) if word is None else word


def _narrow(x: Tensor, prediction: Tensor, uncond: Tensor | None) -> torch.dtype:
    """The dtype that kernels read predictions in: x's, or the half precision that autocast gives under float32."""
    halves = (torch.bfloat16, torch.float16)
    alike = uncond is None or uncond.dtype == prediction.dtype
    return prediction.dtype if x.dtype == torch.float32 and prediction.dtype in halves and alike else x.dtype


def _like(x: Tensor, tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """In the memory layout of x, converted where the dtype differs."""
    return layout.laid_out_like(tensor.to(dtype), x)


def _clip_mode(clip: float | str | None, dynamic_ratio: float) -> tuple[int, float]:
    if isinstance(clip, str):
        return columns.DYNAMIC, float(dynamic_ratio)
    return (columns.NO_CLIP, 0.0) if clip is None else (columns.FIXED, float(clip))


def sampler_step(
    x: Tensor,
    prediction: Tensor,
    table: Tensor,
    step: int | Tensor,
    *,
    uncond: Tensor | None = None,
    guidance_rescale: float = 0.0,
    clip: float | str | None = None,
    dynamic_ratio: float = 0.995,
    dynamic_max: float | None = None,
    previous: Tensor | None = None,
    previous2: Tensor | None = None,
    noise: Tensor | None = None,
    seed: int | Tensor | None = None,
    sample_offset: int | Tensor = 0,
    stream: int | Tensor | None = None,
    frame_correlation: float = 0.0,
    correlation_kind: str = "mixed",
) -> tuple[Tensor, Tensor]:
    """x_prev = a x + b x0 + c y + d previous + h previous2 + e z, x0 = clip(f x + g y), y = guided prediction.

    Guided: y = uncond + w (prediction - uncond).

    One pass of classifier-free guidance, conversion of the prediction to x0, clipping, and the update of DDPM, DDIM,
    DPM-Solver++(2M), UniPC, Heun or Euler with its noise. a .. h and w are row `step` of the table, so nothing is read
    back from the device and the call can be captured in a CUDA graph.

    Args:
        x: (B, ...), float32, bfloat16, float16 (float64 on CPU). Contiguous and channels-last are read as they are,
            other strides make one copy.
        prediction: what the network predicts at x, shape of x; of the dtype of x, or bfloat16 or float16 under a
            float32 x (others make one copy). Strides other than those of x make one copy.
        table: (steps, 9) float32 of `vf.diffusion.sampler_table`, on the device of x.
        step: row of the table: an int, or a 0-d int64 tensor on the device of x.
        uncond: the prediction without the condition; without it y = prediction.
        guidance_rescale: share phi of y' = y std(prediction) / std(y) in phi y' + (1 - phi) y; y' = y in a sample whose
            y is the same everywhere.
        clip: None, a number c (x0 within [-c, c]), or "dynamic": s = the `dynamic_ratio` quantile of |x0| per sample,
            within [1, dynamic_max]; x0 = clamp(x0, -s, s) / s.
        previous, previous2: x0 of the step before and of two steps before, for samplers of higher order.
        noise: z, shape of x; or drawn from `seed`.
        seed: int or 0-d int64 tensor; z = noise(x.shape, seed, sample_offset=..., stream=...), drawn in the kernel.
        sample_offset: index of the first sample in the whole batch.
        stream: of the noise; 1 + step where it is left out.
        frame_correlation, correlation_kind: of the drawn noise of a video's frames, see `vdiff_fast.ops.noise`.

    Returns:
        (x_prev, x0): dtype, shape and layout of x. Reads x and the predictions, writes two. Kernels have no backward:
        where a gradient is asked for the reference runs.

    Raises:
        TypeError: x, a prediction, `previous`, `previous2` or `noise` is not floating point; a seed of the wrong type.
        ValueError: shapes, devices or options do not fit; both noise and seed. On CPU, outside traced code, also: step
            is outside the table, or its row uses noise, `previous` or `previous2` that were not given (elsewhere the
            result is NaN).

    Source: Ho et al. 2020; Song et al. 2021, "Denoising Diffusion Implicit Models", eq. 12; Ho, Salimans 2022; Lu et
    al. 2022, "DPM-Solver++", algorithm 2; Zhao et al. 2023, "UniPC"; Karras et al. 2022; Lin et al. 2023;
    Saharia et al. 2022.
    """
    tensors = {"prediction": prediction, "uncond": uncond, "previous": previous, "previous2": previous2, "noise": noise}
    _check_tensors(x, table, tensors)
    _check_options(uncond, guidance_rescale, clip, dynamic_ratio, dynamic_max)
    if noise is not None and seed is not None:
        raise ValueError("sampler_step: give noise= or seed=, not both")
    step = _word("step", step, x)
    seed = None if seed is None else seed_tensor("sampler_step", seed, x.device)
    offset = counter_word("sampler_step", "sample_offset", sample_offset, x.device)
    stream = None if stream is None else _word("stream", stream, x)
    if _derivatives.values_readable(x):
        _check_values(table, step, previous, previous2, noise is not None or seed is not None)
    frames, shared, own, progressive = checked_frames("sampler_step", x.shape, frame_correlation, correlation_kind)
    # The kernels have no backward.
    constants = {"x": x, "table": table, **tensors}
    backend = _dispatch.choose("sampler_step", PREDICATES, x, constants=constants)
    if backend == "reference":
        return _dispatch.call_reference(
            reference.sampler_step,
            x,
            prediction,
            table,
            step,
            uncond=uncond,
            guidance_rescale=guidance_rescale,
            clip=clip,
            dynamic_ratio=dynamic_ratio,
            dynamic_max=dynamic_max,
            previous=previous,
            previous2=previous2,
            noise=noise,
            seed=seed,
            sample_offset=0 if offset is None else offset,
            stream=stream,
            frame_correlation=frame_correlation,
            correlation_kind=correlation_kind,
        )
    x = layout.native(x)
    prediction = _like(x, prediction, _narrow(x, prediction, uncond))
    mode, bound = _clip_mode(clip, dynamic_ratio)
    call = Call(
        x=x,
        prediction=prediction,
        table=table.to(torch.promote_types(x.dtype, torch.float32)).contiguous(),
        step=step,
        uncond=None if uncond is None else _like(x, uncond, prediction.dtype),
        previous=None if previous is None else _like(x, previous, x.dtype),
        previous2=None if previous2 is None else _like(x, previous2, x.dtype),
        noise=None if noise is None else _like(x, noise, x.dtype),
        seed=seed,
        sample_offset=offset,
        stream=stream,
        guidance_rescale=float(guidance_rescale),
        clip_mode=mode,
        clip=bound,
        clip_max=math.inf if dynamic_max is None else float(dynamic_max),
        frames=frames,
        shared=shared,
        own=own,
        progressive=progressive,
    )
    return _KERNELS[backend].sampler_step(call)
