"""Classifier-free guidance: its scale at every step, and how the unconditional call is made."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

GuidanceScale = float | Sequence[float] | Callable[[float], float]
GUIDANCE_BATCHES = ("auto", "joint", "split")


@dataclass(frozen=True, eq=False)
class Guidance:
    """y = y_uncond + scale (y_cond - y_uncond), the model called with and without its condition.

    Attributes:
        scale: 1 is off; one number, one per step, or a function of the share of the sampling that is done, from 0 to 1.
            A step of scale 1 costs one call of the model.
        interval: (low, high]: no guidance where sigma / signal lies outside.
        rescale: share, from 0 to 1, by which the guided prediction is brought back to the conditional one's deviation,
            see `vf.ops.sampler_step`.
        uncond: inputs of the unconditional call that differ from the conditional one's; None leaves an input out, an
            int fills a tensor like its partner (the null class). By default y and context are left out.
        batch: "joint" calls the model once on the doubled batch, "split" twice (half the memory); "auto" is joint where
            every input has an unconditional tensor of the same shape, until a device runs out of memory.

    Raises:
        ValueError: an interval that is no interval, or an unknown batch.

    Source: Ho and Salimans 2022, "Classifier-free diffusion guidance", eq. 6; Kynkäänniemi et al. 2024, "Applying
    guidance in a limited interval", section 3; Lin et al. 2024, "Common diffusion noise schedules", eq. 15.
    """

    scale: GuidanceScale = 1.0
    interval: tuple[float, float] | None = None
    rescale: float = 0.0
    uncond: Mapping[str, Tensor | int | None] | None = None
    batch: str = "auto"

    def __post_init__(self) -> None:
        if self.interval is not None and not 0 <= self.interval[0] < self.interval[1]:
            raise ValueError(
                f"a guidance interval is (low, high] of sigma / signal with 0 <= low < high, got {tuple(self.interval)}"
            )
        if self.batch not in GUIDANCE_BATCHES:
            raise ValueError(f"the guidance batch must be one of {', '.join(GUIDANCE_BATCHES)}, got {self.batch!r}")

    def scales(self, signal: Tensor, sigma: Tensor) -> tuple[float, ...]:
        """The scale of every step; signal and sigma (steps,) are those of the times at which the steps start."""
        scales = self._given_scales(len(signal))
        if self.interval is None:
            return scales
        low, high = self.interval
        levels = (sigma / signal).tolist()
        return tuple(scale if low < level <= high else 1.0 for scale, level in zip(scales, levels))

    def _given_scales(self, steps: int) -> tuple[float, ...]:
        if callable(self.scale):
            return tuple(float(self.scale(i / max(steps - 1, 1))) for i in range(steps))
        if isinstance(self.scale, (int, float)):
            return (float(self.scale),) * steps
        scales = tuple(float(scale) for scale in self.scale)
        if len(scales) != steps:
            raise ValueError(f"guidance has {len(scales)} scales for {steps} steps; give one number or one per step")
        return scales


def as_guidance(guidance: GuidanceScale | Guidance) -> Guidance:
    """A bare scale stands for guidance of that scale alone."""
    return guidance if isinstance(guidance, Guidance) else Guidance(guidance)
