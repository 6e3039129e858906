"""What an op reads of a noise schedule, whoever made it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from vdiff_fast._derivatives import values_readable


@runtime_checkable
class Schedule(Protocol):
    """x_t = signal(t) x0 + noise_scale(t) noise, as float32 tables (timesteps,) on the device of x0.

    A step t int64 in [0, timesteps) reads row t of every table. For `kind` "flow" a float t in [0, 1] is also
    accepted: it is sigma itself, and no table is read.

    Attributes:
        kind: "variance_preserving": signal = sqrt(alpha_bar), noise scale = sqrt(1 - alpha_bar).
            "flow" (rectified flow): signal = 1 - sigma, noise scale = sigma, held in the same two tables.
        sqrt_alphas_cumprod: signal coefficient of every step.
        sqrt_one_minus_alphas_cumprod: noise coefficient of every step.
        alphas_cumprod: square of the signal coefficient.
        snr: (signal / noise scale)^2; 0 at a zero terminal SNR, inf where there is no noise.
    """

    @property
    def kind(self) -> str: ...

    @property
    def timesteps(self) -> int: ...

    @property
    def sqrt_alphas_cumprod(self) -> Tensor: ...

    @property
    def sqrt_one_minus_alphas_cumprod(self) -> Tensor: ...

    @property
    def alphas_cumprod(self) -> Tensor: ...

    @property
    def snr(self) -> Tensor: ...


def check_timesteps(op: str, t: Tensor, schedule: Schedule, x0: Tensor) -> None:
    """t (B,) of the right dtype on the device of x0, with a schedule on that device; values are read on eager CPU only.

    Raises:
        TypeError: t is neither int64 nor, for a flow schedule, floating point; the tables are not float32.
        ValueError: t has another shape or device, the schedule's tables lie elsewhere, or a t is out of range.
    """
    if t.dtype != torch.int64 and not (t.is_floating_point() and schedule.kind == "flow"):
        wanted = "int64 steps or float sigmas" if schedule.kind == "flow" else "int64 steps"
        raise TypeError(f"{op}: t must be {wanted} for a {schedule.kind} schedule, got {t.dtype}")
    if t.dim() != 1 or t.shape[0] != x0.shape[0]:
        raise ValueError(f"{op}: t must have shape (B,) = ({x0.shape[0]},), got {tuple(t.shape)}")
    tables = schedule.sqrt_alphas_cumprod
    if tables.dtype != torch.float32:
        raise TypeError(f"{op}: the schedule's tables must be float32, got {tables.dtype}")
    if t.device != x0.device or tables.device != x0.device:
        raise ValueError(f"{op}: x0 is on {x0.device}, t on {t.device}, the schedule on {tables.device}")
    if not values_readable(t) or t.numel() == 0:
        return
    values = t.tolist()
    low, high = min(values), max(values)
    if t.is_floating_point():
        if not (low >= 0.0 and high <= 1.0):
            raise ValueError(f"{op}: t must lie in [0, 1], got values from {low} to {high}")
    elif low < 0 or high >= schedule.timesteps:
        raise ValueError(f"{op}: t must lie in [0, {schedule.timesteps}), got values from {low} to {high}")


def schedule_constants(t: Tensor, schedule: Schedule) -> dict[str, Tensor | None]:
    """Times and tables as `vdiff_fast._dispatch.choose` takes inputs that kernels have no gradient of."""
    tables = schedule.sqrt_alphas_cumprod, schedule.sqrt_one_minus_alphas_cumprod
    return {"t": t, "the schedule": tables[0], "the schedule's noise": tables[1]}


def coefficients(schedule: Schedule, t: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Signal and noise coefficient (B,) of every sample; NaN where t is out of range."""
    nan = float("nan")
    if t.is_floating_point():
        sigma = t.to(torch.float32).to(dtype)
        sigma = torch.where((sigma >= 0) & (sigma <= 1), sigma, nan)
        return 1 - sigma, sigma
    inside = (t >= 0) & (t < schedule.timesteps)
    row = torch.where(inside, t, 0)
    signal = schedule.sqrt_alphas_cumprod.to(dtype)[row]
    noise_scale = schedule.sqrt_one_minus_alphas_cumprod.to(dtype)[row]
    return torch.where(inside, signal, nan), torch.where(inside, noise_scale, nan)


def per_sample(values: Tensor, x: Tensor) -> Tensor:
    """(B,) as (B, 1, ...) against x."""
    return values.view(-1, *[1] * (x.dim() - 1))


@dataclass(frozen=True)
class Tables:
    """A Schedule of given coefficients: what kernels read of one, and what tests and benchmarks of one op use."""

    kind: str
    sqrt_alphas_cumprod: Tensor
    sqrt_one_minus_alphas_cumprod: Tensor

    @staticmethod
    def read_by(t: Tensor, signal: Tensor, noise_scale: Tensor) -> Tables:
        """The schedule that t and its two tables belong to, as far as an op reads it."""
        return Tables("flow" if t.is_floating_point() else "variance_preserving", signal, noise_scale)

    @property
    def timesteps(self) -> int:
        return self.sqrt_alphas_cumprod.shape[0]

    @property
    def alphas_cumprod(self) -> Tensor:
        return self.sqrt_alphas_cumprod**2

    @property
    def snr(self) -> Tensor:
        return (self.sqrt_alphas_cumprod / self.sqrt_one_minus_alphas_cumprod) ** 2

    @staticmethod
    def cosine(steps: int, device: torch.device | str = "cpu") -> Tables:
        """Variance preserving, alpha_bar = cos^2: the last step has zero terminal SNR exactly."""
        angle = torch.linspace(0.02, torch.pi / 2, steps, dtype=torch.float64)
        signal = angle.cos()
        signal[-1] = 0
        return Tables("variance_preserving", signal.float().to(device), angle.sin().float().to(device))

    @staticmethod
    def flow(steps: int, device: torch.device | str = "cpu") -> Tables:
        """Rectified flow, sigma from 0 to 1."""
        sigma = torch.linspace(0, 1, steps, dtype=torch.float64)
        return Tables("flow", (1 - sigma).float().to(device), sigma.float().to(device))
