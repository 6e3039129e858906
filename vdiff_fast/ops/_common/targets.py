"""Prediction targets: what a network is asked to predict, each as one record.

A target is y = p x0 + q z, where x = signal x0 + sigma z is the noised video. Both x0 and z are linear in x and y:

    x0 = (q x - sigma y) / d,   z = (signal y - p x) / d,   d = signal q - sigma p.

    target   p        q
    noise    0        1        Ho et al. 2020, eq. 14
    v        -sigma   signal   Salimans and Ho 2022, "Progressive Distillation", appendix D
    x0       1        0
    flow     -1       1        Lipman et al. 2022: the velocity dx/ds of x = (1 - s) x0 + s z

Kernels know a target by its place in `TARGETS`; each kernel language has one line for it, the pair (p, q), in
csrc/ops/diffusion_loss/math.h and in vdiff_fast/ops/diffusion_loss/triton.py.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Mix = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Target:
    """One prediction target.

    Attributes:
        name: how it is asked for.
        mix: (signal, sigma) -> (p, q) of y = p x0 + q z, tensors of their shape.
    """

    name: str
    mix: Mix

    def x0_coefficients(self, signal: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """(c_x, c_y) of x0 = c_x x + c_y y; inf or NaN where the target does not determine x0."""
        p, q = self.mix(signal, sigma)
        determinant = signal * q - sigma * p
        clean = q == 0  # y is a multiple of x0, whatever the noise
        return torch.where(clean, 0.0, q / determinant), torch.where(clean, 1 / p, -sigma / determinant)

    def noise_coefficients(self, signal: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """(e_x, e_y) of z = e_x x + e_y y; inf or NaN where the target does not determine z."""
        p, q = self.mix(signal, sigma)
        determinant = signal * q - sigma * p
        pure = p == 0  # y is a multiple of the noise, whatever the video
        return torch.where(pure, 0.0, -p / determinant), torch.where(pure, 1 / q, signal / determinant)


TARGETS = {
    target.name: target
    for target in (
        Target("noise", lambda signal, sigma: (torch.zeros_like(signal), torch.ones_like(signal))),
        Target("v", lambda signal, sigma: (-sigma, signal)),
        Target("x0", lambda signal, sigma: (torch.ones_like(signal), torch.zeros_like(signal))),
        Target("flow", lambda signal, sigma: (-torch.ones_like(signal), torch.ones_like(signal))),
    )
}


def find_target(target: str) -> Target:
    """The record of a name.

    Raises:
        ValueError: no target has this name.
    """
    if target not in TARGETS:
        raise ValueError(f"unknown target {target!r}; choose from {', '.join(TARGETS)}")
    return TARGETS[target]
