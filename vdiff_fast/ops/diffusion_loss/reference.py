"""Loss of a prediction against p x0 + q noise, weighted by min-SNR-gamma (Hang et al. 2023, eq. 7).

An error e of the prediction is an error of x0 of size e b / d, d = a q - b p, with signal a and noise scale b. Min-SNR
weighs the squared error of x0 by min(snr, gamma), snr = (a / b)^2, so the weight is min(snr, gamma) (b / d)^2. That is
min(1, gamma / snr) for the target noise, min(snr, gamma) / (snr + 1) for v (Salimans and Ho 2022), min(snr, gamma) for
x0 and min(snr, gamma) (b / (a + b))^2 for a flow. Where d is 0 the limit is taken: 1 without a signal, gamma without
noise.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vdiff_fast.ops._common.schedule import Schedule, coefficients, per_sample
from vdiff_fast.ops._common.targets import find_target
from vdiff_fast.ops.noise import reference as noise_reference


def loss_weight(signal: Tensor, noise_scale: Tensor, target: str, weighting: str, gamma: float) -> Tensor:
    """Weight (B,) of each sample; NaN where the coefficients are."""
    if weighting == "uniform":
        return torch.where(signal.isnan(), signal, 1.0)
    ratio = signal / noise_scale
    clipped = (ratio * ratio).clamp(max=gamma)
    p, q = find_target(target).mix(signal, noise_scale)
    determinant = signal * q - noise_scale * p
    share = noise_scale / determinant
    limit = torch.where(noise_scale == 0, clipped, 1.0)
    return torch.where(determinant == 0, limit, clipped * (share * share))


def diffusion_loss(
    prediction: Tensor,
    x0: Tensor,
    t: Tensor,
    schedule: Schedule,
    *,
    target: str = "noise",
    noise: Tensor | None = None,
    seed: int | Tensor | None = None,
    sample_offset: int | Tensor | None = 0,
    stream: int | Tensor | None = 0,
    weighting: str = "uniform",
    gamma: float = 5.0,
    reduction: str = "mean",
    kind: str = "mse",
    delta: float = 1.0,
    check_finite: bool = False,
    frame_correlation: float = 0.0,
    correlation_kind: str = "mixed",
) -> Tensor:
    dtype = torch.float64 if prediction.dtype == torch.float64 else torch.float32
    signal, noise_scale = coefficients(schedule, t, dtype)
    if noise is None:
        assert seed is not None
        noise = noise_reference.noise(
            x0.shape, seed, sample_offset=sample_offset, stream=stream, dtype=dtype, device=x0.device,
            frame_correlation=frame_correlation, correlation_kind=correlation_kind,
        )  # fmt: skip
    p, q = (per_sample(c, x0) for c in find_target(target).mix(signal, noise_scale))
    wanted = q * noise.to(dtype) + p * x0.to(dtype)
    weight = loss_weight(signal, noise_scale, target, weighting, gamma)
    elements = _element_loss(prediction.to(dtype), wanted, kind, delta)
    losses = weight * elements.flatten(1).mean(1) if elements.dim() > 1 else weight * elements
    return losses.mean() if reduction == "mean" else losses


def _element_loss(prediction: Tensor, wanted: Tensor, kind: str, delta: float) -> Tensor:
    if kind == "mse":
        return (prediction - wanted) ** 2
    # In plain arithmetic: forward mode does not know the backward of F.huber_loss.
    error = prediction - wanted
    clamped = error.clamp(-delta, delta)
    return clamped * (error - clamped / 2)
