"""One reverse step: guidance (Ho, Salimans 2022, eq. 6; rescaled: Lin et al. 2023, eq. 15, 16), x0, clip, update."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from vdiff_fast.ops.noise import reference as counter_noise
from vdiff_fast.ops.sampler_step import columns


def _row(table: Tensor, step: int | Tensor) -> Tensor:
    """Row `step` without reading the step back to the host; NaN outside the table."""
    index = torch.as_tensor(step, device=table.device).reshape(1)
    row = table.index_select(0, index.clamp(0, table.shape[0] - 1))[0]
    return torch.where((index >= 0) & (index < table.shape[0]), row, math.nan)


def _guided(prediction: Tensor, uncond: Tensor, scale: Tensor, rescale: float) -> Tensor:
    guided = uncond + scale * (prediction - uncond)
    if not rescale:
        return guided
    before, after = _spread(prediction), _spread(guided)
    ratio = torch.where(after == 0, 1.0, before / torch.where(after == 0, 1.0, after))
    factor = (rescale * ratio + (1 - rescale)).to(guided.dtype)
    return guided * factor.reshape(-1, *[1] * (guided.dim() - 1))


def _spread(values: Tensor) -> Tensor:
    """Standard deviation of each sample, (B,): 0 where a sample has one value, or one element."""
    wide = values.to(torch.promote_types(values.dtype, torch.float32))
    return _rows(wide).var(dim=1, correction=0).sqrt()


def _rows(values: Tensor) -> Tensor:
    """(B, n): every sample's elements in a row."""
    return values.flatten(1) if values.dim() > 1 else values.unsqueeze(1)


def quantile(values: Tensor, ratio: float) -> Tensor:
    """Linearly interpolated quantile over the last axis of (B, n): torch.quantile without its size limit."""
    ordered = values.sort(dim=-1).values
    position = ratio * (values.shape[-1] - 1)
    below = math.floor(position)
    above = min(below + 1, values.shape[-1] - 1)
    between = torch.lerp(ordered[..., below], ordered[..., above], position - below)
    return torch.where(ordered[..., -1].isnan(), math.nan, between)  # a NaN sorts last


def _thresholded(x0: Tensor, ratio: float, maximum: float | None) -> Tensor:
    """Dynamic thresholding (Saharia et al. 2022, Imagen, section 2.3): clip to the quantile s >= 1, divide by s."""
    wide = x0.to(torch.promote_types(x0.dtype, torch.float32))
    limit = quantile(_rows(wide).abs(), ratio).clamp(min=1, max=maximum)
    limit = limit.reshape(-1, *[1] * (x0.dim() - 1))
    return (wide.clamp(-limit, limit) / limit).to(x0.dtype)


def _term(coefficient: Tensor, value: Tensor | None, x: Tensor) -> Tensor:
    """coefficient * value; a value that is missing though its coefficient is not 0 makes NaN."""
    if value is None:
        return torch.where(coefficient == 0, 0.0, math.nan).to(x.dtype)
    return coefficient.to(x.dtype) * value.to(x.dtype)


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
    row = _row(table, step).to(torch.promote_types(x.dtype, torch.float32))
    y = prediction.to(x.dtype)
    if uncond is not None:
        y = _guided(y, uncond.to(x.dtype), row[columns.GUIDANCE], guidance_rescale)
    x0 = row[columns.X0_X] * x + row[columns.X0_Y] * y
    if clip == "dynamic":
        x0 = _thresholded(x0, dynamic_ratio, dynamic_max) if x0.numel() else x0
    elif isinstance(clip, (int, float)):
        x0 = x0.clamp(-clip, clip)
    if noise is None and seed is not None:
        stream = 1 + step if stream is None else stream
        noise = counter_noise.noise(
            x.shape, seed, sample_offset=sample_offset, stream=stream, dtype=x.dtype, device=x.device,
            frame_correlation=frame_correlation, correlation_kind=correlation_kind,
        )  # fmt: skip
    update = row[columns.X] * x + row[columns.X0] * x0 + row[columns.Y] * y
    update = update + _term(row[columns.PREVIOUS], previous, x) + _term(row[columns.PREVIOUS2], previous2, x)
    return update + _term(row[columns.NOISE], noise, x), x0
