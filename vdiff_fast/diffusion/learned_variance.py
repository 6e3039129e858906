"""Networks that predict a variance beside the mean: twice the channels of x (Nichol, Dhariwal 2021; DiT).

The second half v, in [-1, 1] about, says where the variance of p(x_{t-1} | x_t) lies between the posterior's and beta:

    log variance = log small + (v + 1) / 2 * (log large - log small)                                (eq. 15)
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from vdiff_fast.diffusion.process import to_x0
from vdiff_fast.diffusion.schedule import NoiseSchedule


def split_prediction(prediction: Tensor, x: Tensor) -> tuple[Tensor, Tensor | None]:
    """(the prediction of the target, v) where the network gives (B, 2 C, ...) for an x (B, C, ...), else (it, None)."""
    if prediction.dim() < 2 or x.dim() != prediction.dim() or prediction.shape[1] != 2 * x.shape[1]:
        return prediction, None
    mean, values = prediction.chunk(2, dim=1)
    return mean, values


def step_log_variances(small: Tensor, large: Tensor) -> Tensor:
    """(steps, 2) float32: log small, and log large - log small, of every step; (-inf, 0) where no noise is added."""
    noisy = small > 0
    low = torch.where(noisy, small, 1.0).log()
    span = torch.where(noisy, large, 1.0).log() - low
    return torch.stack([torch.where(noisy, low, -math.inf), span], dim=1).float()


def standard_deviation(values: Tensor, row: Tensor) -> Tensor:
    """exp(log variance / 2) of a step, whose row of `step_log_variances` is given; shape of `values`."""
    low, span = row.to(values.dtype)
    return ((low + (values + 1) / 2 * span) / 2).exp()


def variational_bound(
    prediction: Tensor, values: Tensor, x: Tensor, x0: Tensor, t: Tensor, schedule: NoiseSchedule, *, target: str,
    bin_width: float | None = 2 / 255,
) -> Tensor:  # fmt: skip
    """L_t = KL(q(x_{t-1} | x_t, x0) || p(x_{t-1} | x_t)), and L_0 = -log p(x0 | x_1): (B,) in bits per element.

    The mean is detached, so that the bound trains the variance alone.

    Args:
        prediction: of `target` at x = x_t, (B, C, ...); values: v, the same shape.
        x0: the clean video; t: (B,) int64 steps; schedule: on their device.
        bin_width: of the bins that x0 was rounded to, pixels of 8 bits in [-1, 1]: L_0 is the logarithm of
            the probability of x0's bin, the outermost open. None: of the density, for values that were not rounded.

    Source: Nichol and Dhariwal 2021, "Improved Denoising Diffusion Probabilistic Models", eq. 4 to 7, 15, 16; Ho et
    al. 2020, eq. 13.
    """
    kind = torch.promote_types(prediction.dtype, torch.float32)
    mean, values, x, x0 = prediction.detach().to(kind), values.to(kind), x.to(kind), x0.to(kind)
    rows = [table[t].to(kind).reshape(-1, *[1] * (x.dim() - 1)) for table in (
        schedule.posterior_log_variance_clipped, schedule.betas, schedule.posterior_mean_coef1,
    )]  # fmt: skip
    small, large, coefficient = rows[0], rows[1].log(), rows[2]
    log_variance = small + (values + 1) / 2 * (large - small)
    # Both means have the same share of x_t.
    difference = coefficient * (x0 - to_x0(x, mean, t, schedule, target))
    divergence = (log_variance - small - 1 + (small - log_variance).exp()
                  + difference.square() * (-log_variance).exp()) / 2  # fmt: skip
    first = _first_term(difference, log_variance, x0, bin_width)
    terms = torch.where((t == 0).reshape(-1, *[1] * (x.dim() - 1)), first, divergence)
    return terms.flatten(1).mean(1) / math.log(2)


def _first_term(difference: Tensor, log_variance: Tensor, x0: Tensor, bin_width: float | None) -> Tensor:
    """-log p(x0) of a normal whose mean is x0 - difference."""
    if bin_width is None:
        return (log_variance + math.log(2 * math.pi) + difference.square() * (-log_variance).exp()) / 2
    scale = (-log_variance / 2).exp()
    # ln(Phi(b) - Phi(a)) through the side of the normal where nothing cancels.
    upper, lower = (difference + bin_width / 2) * scale, (difference - bin_width / 2) * scale
    upper, lower = torch.where(upper + lower > 0, -lower, upper), torch.where(upper + lower > 0, -upper, lower)
    middle = _log_difference(torch.special.log_ndtr(upper), torch.special.log_ndtr(lower))
    edge = 1 - bin_width / 2
    outside = torch.where(
        x0 > edge,
        torch.special.log_ndtr(-(difference - bin_width / 2) * scale),
        torch.special.log_ndtr((difference + bin_width / 2) * scale),
    )
    return -torch.where(x0.abs() > edge, outside, middle)


def _log_difference(larger: Tensor, smaller: Tensor) -> Tensor:
    """ln(exp(larger) - exp(smaller)), finite where rounding leaves nothing between them."""
    gap = (larger - smaller).clamp(min=torch.finfo(larger.dtype).tiny)
    return larger + torch.log(-torch.expm1(-gap))
