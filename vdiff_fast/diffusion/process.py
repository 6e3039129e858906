"""The forward process one step at a time, and conversions between what a network may predict."""

from __future__ import annotations

from torch import Tensor

from vdiff_fast.ops._common.schedule import Schedule
from vdiff_fast.ops._common.targets import find_target


def _at(table: Tensor, t: Tensor, x: Tensor) -> Tensor:
    """Rows t of a table in the dtype of x, shaped to broadcast over it."""
    return table[t].to(x.dtype).reshape(-1, *[1] * (x.dim() - 1))


def _rates(x: Tensor, t: Tensor, schedule: Schedule) -> tuple[Tensor, Tensor]:
    """signal and sigma of every sample, shaped to broadcast over x."""
    if t.shape != x.shape[:1]:
        raise ValueError(f"t must be ({x.shape[0]},), one time per sample of x, got shape {tuple(t.shape)}")
    if t.is_floating_point():
        if schedule.kind != "flow":
            raise TypeError(f"t must be int64 steps for a {schedule.kind} schedule, got {t.dtype}")
        sigma = t.to(x.dtype).reshape(-1, *[1] * (x.dim() - 1))
        return 1 - sigma, sigma
    return _at(schedule.sqrt_alphas_cumprod, t, x), _at(schedule.sqrt_one_minus_alphas_cumprod, t, x)


def diffuse_step(x_before: Tensor, t: Tensor, alphas: Tensor, betas: Tensor, noise: Tensor) -> Tensor:
    """x_t = sqrt(alphas_t) x_{t-1} + sqrt(betas_t) z: one step of the chain, x_{-1} = x0.

    Applied for 0 .. t it is equal in distribution to the closed form, `vf.ops.q_sample`.

    Args:
        x_before: (B, ...), x_{t-1}.
        t: (B,) int64.
        alphas, betas: the schedule's tables.
        noise: standard normal, shape of x_before.

    Returns:
        x_t, shape and dtype of x_before.

    Source: Ho et al. 2020, eq. 2.
    """
    return _at(alphas, t, x_before).sqrt() * x_before + _at(betas, t, x_before).sqrt() * noise


def to_target(x0: Tensor, noise: Tensor, t: Tensor, schedule: Schedule, target: str) -> Tensor:
    """y = p x0 + q z: what a network of this target is asked to predict. Shapes (B, ...), t (B,)."""
    p, q = find_target(target).mix(*_rates(x0, t, schedule))
    return p * x0 + q * noise


def to_x0(x: Tensor, prediction: Tensor, t: Tensor, schedule: Schedule, target: str) -> Tensor:
    """x0 = c_x x + c_y y: the clean video that a prediction of this target means. Shapes (B, ...), t (B,)."""
    c_x, c_y = find_target(target).x0_coefficients(*_rates(x, t, schedule))
    return c_x * x + c_y * prediction


def to_noise(x: Tensor, prediction: Tensor, t: Tensor, schedule: Schedule, target: str) -> Tensor:
    """z = e_x x + e_y y: the noise that a prediction of this target means. Shapes (B, ...), t (B,)."""
    e_x, e_y = find_target(target).noise_coefficients(*_rates(x, t, schedule))
    return e_x * x + e_y * prediction
