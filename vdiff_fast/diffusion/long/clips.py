"""Denoising numbered clips: what long videos, interpolation and prediction have in common."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from vdiff_fast.diffusion.conditioning import (
    ConditionError,
    condition,
    keep_known,
    require_conditioning,
    require_frames,
)
from vdiff_fast.diffusion.noise import Noise
from vdiff_fast.diffusion.sampling import sample
from vdiff_fast.diffusion.schedule import NoiseSchedule

Step = Callable[[], object]


class FixedBatches(nn.Module):
    """model(x) in calls of exactly `size` samples, the last one filled up with copies of its last sample.

    A matrix product or a norm may add up in another order for another batch size, which changes the last bits; with one
    size for all calls a sample's result depends on the sample alone.
    """

    def __init__(self, model: Callable[..., Tensor], size: int) -> None:
        super().__init__()
        self.model: Any = model
        self.size = size
        if hasattr(model, "modulations"):
            # Rows by time and class, whatever the batch: `sample` makes those of all steps at once.
            self.modulations = model.modulations
        if hasattr(model, "keys_values"):
            self.keys_values = self._keys_values

    def forward(self, x: Tensor, t: Tensor, **inputs: Any) -> Tensor:
        parts = []
        for start, stop in self._ranges(len(x)):
            arguments = {name: self._input(value, start, stop) for name, value in inputs.items()}
            part = self.model(self._filled(x, start, stop), self._filled(t, start, stop), **arguments)
            parts.append(part[: stop - start])
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _keys_values(self, context: Tensor | None = None) -> tuple[Tensor, ...]:
        """The model's, of every different context alone: the last bits may differ with the place in a batch, too."""
        if context is None:
            return self.model.keys_values()
        contexts, which = context.unique(dim=0, return_inverse=True)
        made = [self.model.keys_values(one) for one in contexts.split(1)]
        return tuple(torch.cat(tensors).index_select(0, which) for tensors in zip(*made))

    def _ranges(self, count: int) -> list[tuple[int, int]]:
        return [(start, min(start + self.size, count)) for start in range(0, count, self.size)]

    def _input(self, value: Any, start: int, stop: int) -> Any:
        if isinstance(value, tuple):
            return tuple(self._filled(tensor, start, stop) for tensor in value)
        return self._filled(value, start, stop)

    def _filled(self, value: Tensor, start: int, stop: int) -> Tensor:
        copies = self.size - (stop - start)
        if not copies:
            return value[start:stop]
        return torch.cat([value[start:stop], value[stop - 1 : stop].expand(copies, *value.shape[1:])])


@dataclass(frozen=True)
class ClipDenoiser:
    """Clips by number: clip n's noise is that of sample n, so it is the same whichever clips are drawn beside it.

    Attributes:
        model, schedule: see `sample`; the model takes `cond`.
        shape: (C, T, H, W) of a clip.
        seed: of the video.
        fixed_batch: clips of every call of the model, see `FixedBatches`; None: as many as there are.
        inputs: y, context of the video, for one sample.
        options: further arguments of `sample`.
    """

    model: Callable[..., Tensor]
    schedule: NoiseSchedule
    shape: tuple[int, int, int, int]
    seed: int = 0
    fixed_batch: int | None = None
    inputs: Mapping[str, Tensor] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if len(self.shape) != 4 or min(self.shape) < 1:
            raise ConditionError(f"a clip has the shape (C, T, H, W), got {self.shape}")
        if self.fixed_batch is not None and self.fixed_batch < 1:
            raise ConditionError(f"fixed_batch must be at least 1, or None for no fixed size, got {self.fixed_batch}")
        require_conditioning(self.model, self.shape[0])
        require_frames(self.model, self.shape[1])

    @property
    def steps(self) -> int:
        """Calls of the model for a batch, guidance not counted."""
        sampler = self.options.get("sampler")
        return int(getattr(sampler, "steps", self.options.get("steps", 50)))

    def __call__(self, first: int, known: Tensor, mask: Tensor, after_step: Step | None = None) -> Tensor:
        """Clips first, first + 1, ... (n, C, T, H, W) fp32 on the CPU; what `mask` marks is exactly `known`."""
        count, device = len(known), self.schedule.device
        model = self.model if self.fixed_batch is None else FixedBatches(self.model, self.fixed_batch)
        callback = None if after_step is None else lambda step, x, x0: after_step()
        inputs = {name: value.to(device).expand(count, *value.shape[1:]) for name, value in self.inputs.items()}
        arguments: dict[str, Any] = {**inputs, **self.options, "callback": callback}
        clips = sample(
            model, (count, *self.shape), self.schedule, seed=Noise(self.seed, sample_offset=first % 2**32),
            device=device,
            cond=condition(known.to(device), mask), **arguments,
        )  # fmt: skip
        return keep_known(clips.float().cpu(), known.cpu(), mask.cpu())

    def settings(self) -> dict[str, Any]:
        """Everything that the clips depend on, in values that JSON can hold."""
        tables = [self.schedule.exact_signal, self.schedule.exact_sigma]
        return {
            "shape": list(self.shape),
            "seed": self.seed,
            "fixed_batch": self.fixed_batch,
            "model": fingerprint(self.model),
            "schedule": fingerprint(tables),
            **{name: fingerprint(value) for name, value in {**self.inputs, **self.options}.items()},
        }


def fingerprint(value: Any) -> Any:
    """Plain values as they are; of tensors and modules a hash of names, shapes and up to 256 values each."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, nn.Module):
        return _hash(value.state_dict())
    if isinstance(value, Tensor):
        return _hash({"": value})
    if isinstance(value, Mapping):
        return {str(name): fingerprint(entry) for name, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [fingerprint(entry) for entry in value]
    if hasattr(value, "__dataclass_fields__"):
        return {name: fingerprint(getattr(value, name)) for name in value.__dataclass_fields__}
    return type(value).__name__


def _hash(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name, tensor in tensors.items():
        flat = tensor.detach().flatten()
        some = flat[:: max(1, flat.numel() // 256)].double().cpu()
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(some.numpy().tobytes())
    return digest.hexdigest()[:16]
