"""Exponential moving average of weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from vdiff_fast.models.weights import own_names, plain_module, tied_names, weights_like
from vdiff_fast.training.distributed import local, shard_like
from vdiff_fast.training.sharding import free_gathered


class Ema:
    """s <- s + (1 - d_k) (p - s) after step k, with d_k = min(decay, (1 + k) / (10 + k)) while warming up.

    Floating-point parameters are averaged in float32 (float64 ones in float64) whatever their dtype, since a step of
    1 - d is far below what bfloat16 can add; on their device, and tied ones once. Integer parameters and buffers are
    the model's own.

    Args:
        model: compiled or wrapped or not; the averages have the names of the module inside.
        decay: d, in [0, 1).
        warmup: lower decay at the start.
        frozen: average parameters that take no gradient, too; without, they count as their own averages and take no
            memory for them.

    Raises:
        ValueError: a decay outside [0, 1).

    Source: Polyak, Juditsky 1992; warm-up as in Tensorflow's ExponentialMovingAverage.
    """

    def __init__(self, model: nn.Module, decay: float, *, warmup: bool = True, frozen: bool = True) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"the decay of an EMA is in [0, 1), got {decay}")
        self.model, self.decay, self.warmup = plain_module(model), decay, warmup
        averaged = [(n, p) for n, p in self.model.named_parameters() if frozen or p.requires_grad]
        self._names = [n for n, p in averaged if p.is_floating_point() or p.is_complex()]
        self._shadows = [p.detach().to(_averaged_dtype(p.dtype), copy=True) for p in self._parameters()]

    def _parameters(self) -> list[Tensor]:
        """The averaged parameters in the order of the averages."""
        parameters = dict(self.model.named_parameters())
        return [parameters[name] for name in self._names]

    def decay_at(self, step: int) -> float:
        """d_k of the k-th step, counted from 1."""
        return min(self.decay, (1 + step) / (10 + step)) if self.warmup else self.decay

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after the `step`-th step."""
        weight = 1.0 - self.decay_at(step)
        alike: tuple[list[Tensor], list[Tensor]] = ([], [])
        # Of a sharded model each rank averages its own part.
        for shadow, parameter in zip(map(local, self._shadows), map(local, self._parameters())):
            if shadow.dtype == parameter.dtype:
                alike[0].append(shadow)
                alike[1].append(parameter)
            else:  # one at a time: their copies together would be as large as the averages
                shadow.lerp_(parameter.to(shadow.dtype), weight)
        if alike[0]:
            torch._foreach_lerp_(*alike, weight)

    def averages(self) -> dict[str, Tensor]:
        """The averages alone, as they are kept: sharded ones are sharded, and tied ones have their first name."""
        plain = own_names(self.model)
        return {plain[name]: shadow for name, shadow in zip(self._names, self._shadows)}

    def state_dict(self) -> dict[str, Tensor]:
        """Averages under every name of their parameters, and the model's buffers: loads into the model itself."""
        plain, state, averaged = own_names(self.model), self.model.state_dict(), self.averages()
        for name, first in tied_names(self.model).items():
            if plain.get(first) in averaged:
                averaged[plain[name]] = averaged[plain[first]]
        return {plain[name]: averaged.get(plain[name], value) for name, value in state.items()}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore the averages; of tied parameters by their first name. Buffers belong to the model."""
        plain = own_names(self.model)
        averages = weights_like(state, [plain[name] for name in self._names])
        for name, shadow in zip(self._names, self._shadows):
            shadow.copy_(shard_like(averages[plain[name]], shadow))

    @contextmanager
    def applied(self) -> Iterator[nn.Module]:
        """The model with the averaged weights, inside the block."""
        free_gathered(self.model)
        parameters, averages = [local(p) for p in self._parameters()], [local(s) for s in self._shadows]
        trained = [p.detach().clone() for p in parameters]
        with torch.no_grad():
            torch._foreach_copy_(parameters, averages)
        try:
            yield self.model
        finally:
            with torch.no_grad():
                torch._foreach_copy_(parameters, trained)
            free_gathered(self.model)


def _averaged_dtype(dtype: torch.dtype) -> torch.dtype:
    """Of the averages of parameters of this dtype."""
    return torch.promote_types(dtype, torch.float32)
