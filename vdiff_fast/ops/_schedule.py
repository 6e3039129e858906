"""What an op reads of a noise schedule, whoever made it."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from torch import Tensor


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
