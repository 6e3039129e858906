"""The objective of mean velocities, whose target is a derivative of the network along the flow."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vdiff_fast import ops
from vdiff_fast.training import draws
from vdiff_fast.training.objective import Batch, Objective

# Of the adaptive weight: Geng et al. 2025, "Mean Flows", section 4.3.
_FLOOR = 1e-3


class MeanVelocity(NamedTuple):
    """u(x_t, r, t), and the velocity that it should be without (t - r) du/dt, which is taken off it."""

    u: Tensor
    target: Tensor


def mean_velocity(
    model: Callable[..., Tensor], x: Tensor, v: Tensor, r: Tensor, t: Tensor, inputs: dict[str, Tensor]
) -> MeanVelocity:
    """u = model(x, t, r=r) with its target v - (t - r) du/dt, du/dt = J_x v + du/dt|_x by one Jacobian-vector product.

    Args:
        model: model(x, t, r=, **inputs) -> the mean velocity from r to t, shape of x.
        x: (B, ...), the flow at t.
        v: its velocity there, noise - x0.
        r, t: (B,) times in [0, 1], r <= t.
        inputs: what else the model gets.

    Returns:
        u, and its target without a gradient.

    Source: Geng et al. 2025, "Mean Flows for One-step Generative Modeling", eq. 8 to 11.
    """

    def of_point(x: Tensor, t: Tensor) -> Tensor:
        return model(x, t, r=r, **inputs)

    tangents = (v, torch.ones_like(t))
    u, slope = torch.func.jvp(of_point, (x, t), tangents)  # type: ignore[misc]  # two, without has_aux
    length = (t - r).reshape(-1, *[1] * (x.dim() - 1))
    return MeanVelocity(u, (v - length * slope).detach())


class MeanFlowObjective(Objective):
    """L = mean_b w_b |u(x_t, r, t) - (v - (t - r) du/dt)|^2, w = 1 / (|.|^2 + 0.001)^power without a gradient.

    The loss has the gradient of L and the value of the mean square error per element: with a power of 1, as in the
    paper, L itself stays at 1 whatever is learned.

    x_t = (1 - t) x0 + t z and v = z - x0 are those of the flow, with the noise z of `Objective`. Where r = t the target
    is v itself, and u the velocity of flow matching.

    Source: Geng et al. 2025, "Mean Flows for One-step Generative Modeling", algorithm 1.
    """

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        # Compiled with its derivative: torch does not differentiate forwards through what is compiled already.
        compiled = self.config.runtime.compile
        self._mean_velocity = torch.compile(mean_velocity) if compiled else mean_velocity

    def _times(self, count: int, sample_offset: int, shift: float) -> tuple[Tensor | None, Tensor]:
        return draws.intervals(count, self.config.mean_flow.share, self.config.seed, sample_offset)

    def predict(self, model: Callable[..., Tensor], batch: Batch) -> MeanVelocity:
        assert batch.r is not None
        x0, offset = batch.x0, batch.sample_offset
        x_t = ops.q_sample(x0, batch.t, self.schedule, seed=self.seed, sample_offset=offset)
        v = ops.noise(x0.shape, self.seed, sample_offset=offset, dtype=x0.dtype, device=self.device) - x0
        with self.autocast():
            return self._mean_velocity(model, x_t, v, batch.r, batch.t, batch.inputs)

    def loss(self, prediction: MeanVelocity, batch: Batch) -> Tensor:
        """The scalar loss, in fp32."""
        squares = (prediction.u.float() - prediction.target.float()).square().flatten(1)
        errors = squares.sum(1)
        weighted = (errors / (errors.detach() + _FLOOR) ** self.config.mean_flow.power).mean()
        return weighted + (squares.mean() - weighted).detach()
