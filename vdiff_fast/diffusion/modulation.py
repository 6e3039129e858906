"""What a sampling run makes before its first step: modulations of all steps, keys and values of the context."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vdiff_fast.nn.plain import watched

# Above this the table would take the memory that the model's activations need; then every step makes its own.
MAX_BYTES = 1 << 30


def _method(model: Any, name: str) -> Any:
    """The model's method, or None: it has none, or hooks on a forward that the method goes past.

    Sharding and offloading bring parameters to where they are read by such hooks.
    """
    if isinstance(model, nn.Module) and watched(model):
        return None
    return getattr(model, name, None)


@dataclass(frozen=True)
class ModulationTable:
    """m[i, b] = model.modulations(t_i, y_b): what blocks are scaled and shifted by depends on time and class alone.

    A model takes part by two methods: `modulations(t, y=None) -> (B, W)`, everything its blocks make of time and
    class, and `model(x, t, ..., modulation=rows)`, which reads them instead. A sampling step then reads one row, where
    it would read the embedding's and every modulation layer's weights. A model that is told where steps end gets that
    as `modulations(t, y, r)`.

    Attributes:
        rows: (steps, classes, W) in the dtype that the model computes in; classes is 1 without labels.
        which: (B,) the class of every sample in `rows`; None where all have the same.
        batch: B.
    """

    rows: Tensor
    which: Tensor | None
    batch: int

    @classmethod
    def of(
        cls, model: Any, timesteps: Tensor, batch: int, y: Tensor | None, ends: Tensor | None = None
    ) -> ModulationTable | None:
        """The table of a run, or None: the model has no `modulations` or has hooks, or the table would be too large.

        Args:
            model: see above; in evaluation mode.
            timesteps: (steps,), the time of every step.
            batch: samples.
            y: (B,) labels, or None.
            ends: (steps,), where every step ends, or None.
        """
        make = _method(model, "modulations")
        if make is None:
            return None
        given = timesteps[None] if ends is None else torch.stack([timesteps, ends])
        (times, *ended), at = given.unique_consecutive(dim=1, return_inverse=True)  # Heun visits a time twice
        labels, which = (None, None) if y is None else y.unique(return_inverse=True)
        classes = 1 if labels is None else len(labels)
        one = make(times[:1], None if labels is None else labels[:1], *(end[:1] for end in ended))
        if one.numel() * one.element_size() * len(at) * classes > MAX_BYTES:
            return None
        every = [tensor.repeat_interleave(classes) for tensor in (times, *ended)]
        made = make(every[0], None if labels is None else labels.repeat(len(times)), *every[1:])
        rows = made.unflatten(0, (len(times), classes))[at]
        return cls(rows.contiguous(), which if classes > 1 else None, batch)

    def row(self, step: Tensor) -> Tensor:
        """(B, W) of a step, a 0-d int64 tensor on the device: nothing is read back."""
        row = self.rows.index_select(0, step.reshape(1))[0]
        return row.expand(self.batch, -1) if self.which is None else row.index_select(0, self.which)


def context_keys_values(model: Any, batch: int, context: Tensor | None) -> tuple[Tensor, ...]:
    """Keys and values that cross-attentions read in every step of a run; empty where a model has none, or has hooks.

    A model takes part by two methods: `keys_values(context=None) -> (tensor (B, L, W), ...)`, one for each of its
    cross-attentions (B = 1 without a context), and `model(x, t, ..., keys_values=tensors)`, which reads them instead of
    the context.
    """
    make = _method(model, "keys_values")
    made = () if make is None else make(context)
    return tuple(tensor.expand(batch, -1, -1) for tensor in made)
