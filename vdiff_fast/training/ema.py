"""Exponential moving average of weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from vdiff_fast.training.distributed import shard_like


class Ema:
    """s <- s + (1 - d_k) (p - s) after step k, with d_k = min(decay, (1 + k) / (10 + k)) while warming up.

    Averages parameters, in their dtype and on their device; buffers are taken from the model.

    Source: Polyak, Juditsky 1992; warm-up as in Tensorflow's ExponentialMovingAverage.
    """

    def __init__(self, model: nn.Module, decay: float, *, warmup: bool = True) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"the decay of an EMA is in [0, 1), got {decay}")
        self.model, self.decay, self.warmup = model, decay, warmup
        self._names = [name for name, _ in model.named_parameters()]
        self._shadows = [p.detach().clone() for p in model.parameters()]

    def decay_at(self, step: int) -> float:
        """d_k of the k-th step, counted from 1."""
        return min(self.decay, (1 + step) / (10 + step)) if self.warmup else self.decay

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after the `step`-th step."""
        torch._foreach_lerp_(self._shadows, list(self.model.parameters()), 1.0 - self.decay_at(step))

    def state_dict(self) -> dict[str, Tensor]:
        """Averages under the names of the parameters, and the model's buffers: loads into the model itself."""
        averaged = dict(zip(self._names, self._shadows))
        return {name: averaged.get(name, value) for name, value in self.model.state_dict().items()}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore the averages; buffers belong to the model."""
        for name, shadow in zip(self._names, self._shadows):
            shadow.copy_(shard_like(state[name], shadow))

    @contextmanager
    def applied(self) -> Iterator[nn.Module]:
        """The model with the averaged weights, inside the block."""
        parameters: list[Tensor] = list(self.model.parameters())
        trained = [p.detach().clone() for p in parameters]
        with torch.no_grad():
            torch._foreach_copy_(parameters, self._shadows)
        try:
            yield self.model
        finally:
            with torch.no_grad():
                torch._foreach_copy_(parameters, trained)
