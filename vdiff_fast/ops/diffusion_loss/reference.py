"""Loss of a prediction against p noise + q x0, weighted by min-SNR-gamma (Hang et al. 2023, eq. 7).

An error of the prediction is an error of x0 times a factor that depends on the target; min-SNR weighs the error of x0
by min(snr, gamma), so the weight is min(snr, gamma) times that factor squared, taken to its limit at snr 0 and inf:
noise 1/snr, v 1/(snr + 1) (Salimans and Ho 2022), x0 1, flow b^2/(a + b)^2.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from vdiff_fast.ops._common.schedule import Schedule, coefficients, per_sample
from vdiff_fast.ops.noise import reference as noise_reference


def target_coefficients(signal: Tensor, noise_scale: Tensor, target: str) -> tuple[Tensor, Tensor]:
    """(p, q) of target = p noise + q x0."""
    one, zero = torch.ones_like(signal), torch.zeros_like(signal)
    return {"noise": (one, zero), "v": (signal, -noise_scale), "x0": (zero, one), "flow": (one, -one)}[target]


def loss_weight(signal: Tensor, noise_scale: Tensor, target: str, weighting: str, gamma: float) -> Tensor:
    """Weight (B,) of each sample; NaN where the coefficients are."""
    if weighting == "uniform":
        return torch.where(signal.isnan(), signal, 1.0)
    ratio = signal / noise_scale
    snr = ratio * ratio
    clipped = snr.clamp(max=gamma)
    if target == "noise":
        return (gamma / snr).clamp(max=1.0)
    if target == "v":
        return clipped / (snr + 1)
    if target == "x0":
        return clipped
    share = noise_scale / (signal + noise_scale)
    return clipped * (share * share)


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
    p, q = (per_sample(c, x0) for c in target_coefficients(signal, noise_scale, target))
    wanted = p * noise.to(dtype) + q * x0.to(dtype)
    weight = loss_weight(signal, noise_scale, target, weighting, gamma)
    elements = _element_loss(prediction.to(dtype), wanted, kind, delta)
    losses = weight * elements.flatten(1).mean(1) if elements.dim() > 1 else weight * elements
    return losses.mean() if reduction == "mean" else losses


def _element_loss(prediction: Tensor, wanted: Tensor, kind: str, delta: float) -> Tensor:
    if kind == "mse":
        return (prediction - wanted) ** 2
    return F.huber_loss(prediction, wanted, reduction="none", delta=delta)
