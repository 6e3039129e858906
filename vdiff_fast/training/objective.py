"""The training objective of one batch, whose noise is drawn twice and never stored."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from vdiff_fast import data, ops
from vdiff_fast.diffusion import NoiseSchedule
from vdiff_fast.diffusion.conditioning import condition
from vdiff_fast.diffusion.learned_variance import split_prediction, variational_bound
from vdiff_fast.training import draws
from vdiff_fast.training.latents import flow_shift_of
from vdiff_fast.training.masks import draw_masks

if TYPE_CHECKING:
    from vdiff_fast.training.config import TrainConfig
    from vdiff_fast.training.latents import LatentSource

AUTOCAST_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def resolved_precision(precision: str, device: torch.device) -> str:
    """What "auto" is: bf16 where the device multiplies it, else fp32 (7 times as fast on a CPU with AVX2 alone)."""
    if precision != "auto":
        return precision
    if device.type == "cuda":
        return "bf16" if torch.cuda.get_device_capability(device) >= (8, 0) else "fp32"
    return "bf16" if torch.cpu._is_avx512_bf16_supported() else "fp32"


@dataclass(frozen=True)
class Batch:
    """Clips on the device, their timesteps (of mean velocities with where their intervals start), and the rest."""

    x0: Tensor
    t: Tensor
    y: Tensor | None
    sample_offset: Tensor
    files: list[str]
    timesteps: list[float]
    cond: Tensor | None = None
    r: Tensor | None = None
    context: Tensor | None = None
    context_mask: Tensor | None = None

    @property
    def inputs(self) -> dict[str, Tensor]:
        """What the model gets beside x_t and t."""
        given = {name: getattr(self, name) for name in ("y", "context", "context_mask", "cond")}
        return {name: value for name, value in given.items() if value is not None}


class Objective:
    """L = mean_b w(t_b) |f(x_t, t) - target|^2 with x_t = signal_t x0 + sigma_t z(seed, sample).

    z is drawn by `q_sample` and again by `diffusion_loss`, from the seed (a tensor on the device) and the number of the
    sample in the run. Timesteps and dropped labels come from the same counters: a step depends on the weights, the
    seed and the sample numbers alone, however the batch is split over ranks.
    """

    def __init__(
        self, config: TrainConfig, schedule: NoiseSchedule, device: torch.device, num_classes: int | None,
        source: LatentSource | None = None,
    ) -> None:  # fmt: skip
        self.config, self.device, self.num_classes, self.source = config, device, num_classes, source
        self.schedule = schedule.to(device)
        self.seed = torch.full((), config.seed, dtype=torch.int64, device=device)
        self._range_checked = False

    def prepare(self, raw: dict[str, Any], sample_offset: int) -> Batch:
        """A loader's batch on the device, pixels in [-1, 1] or normalised latents, with its timesteps.

        sample_offset counts the samples before it.
        """
        source = self.source
        x0 = self._pixels(raw) if source is None else source.clips(raw, self.seed, sample_offset)
        count, seed, diffusion = len(x0), self.config.seed, self.config.diffusion
        shift = flow_shift_of(diffusion.flow_shift, diffusion.flow_shift_positions, x0[0, 0].numel())
        r, t = self._times(count, sample_offset, shift)
        context, mask = None, None
        if source is not None:
            context, mask = source.context(raw, diffusion.label_dropout, seed, sample_offset, self.device)
        y = None
        if self.num_classes:
            dropped = draws.dropped_labels(count, diffusion.label_dropout, seed, sample_offset)
            y = torch.where(dropped, self.num_classes, self._labels(raw)).to(self.device)
        return Batch(
            x0, t.to(self.device), y, torch.full((), sample_offset, dtype=torch.int64, device=self.device),
            list(raw["file"]), t.tolist(), self._known(x0, raw, sample_offset),
            None if r is None else r.to(self.device), context, mask,
        )  # fmt: skip

    def _labels(self, raw: dict[str, Any]) -> Tensor:
        if "label" not in raw:
            raise data.DatasetItemError("data.labels: the items have no label; give pairs (video, label)")
        labels: Tensor = raw["label"]
        low, high = int(labels.min()), int(labels.max())
        if low < 0 or high >= (self.num_classes or 0):
            raise data.DatasetItemError(
                f"data.labels: label {low if low < 0 else high} is not among the {self.num_classes} classes of the "
                "data set (0 and up)"
            )
        return labels

    def _pixels(self, raw: dict[str, Any]) -> Tensor:
        video = raw["video"].to(self.device, non_blocking=True)
        if video.dtype == torch.uint8 and self.config.data.values == "pixels":
            x0 = data.to_unit_range(video)
        else:
            x0 = video
        if not self._range_checked:
            self._check_values(x0)
            self._range_checked = True
        return x0

    def _check_values(self, x0: Tensor) -> None:
        if self.config.data.values == "pixels":
            data.check_range(x0)
        elif not x0.is_floating_point() or not bool(torch.isfinite(x0).all()):
            raise data.ValueRangeError(
                f"data.values any: a batch is {x0.dtype} in [{float(x0.min()):.4g}, {float(x0.max()):.4g}]; the "
                "values must be finite floating point numbers, of a deviation of 1 or so"
            )

    def _times(self, count: int, sample_offset: int, shift: float) -> tuple[Tensor | None, Tensor]:
        """(None, t) of a batch, on the CPU; `shift` is of a flow in continuous time."""
        diffusion, seed = self.config.diffusion, self.config.seed
        if diffusion.continuous_time:
            return None, draws.flow_times(count, shift, seed, sample_offset)
        return None, draws.timesteps(count, diffusion.timesteps, seed, sample_offset)

    def _known(self, x0: Tensor, raw: dict[str, Any], sample_offset: int) -> Tensor | None:
        """The condition of each clip under its mask, None where the run trains without masks."""
        roles, strides = self.config.diffusion.masks, self.config.data.all_strides
        if not roles:
            return None
        of_clip = raw["stride"].tolist() if "stride" in raw else [strides[0]] * len(x0)
        mask = draw_masks(roles, strides, of_clip, x0.shape[2:], self.config.seed, sample_offset)
        return condition(x0, mask.to(self.device))

    def predict(self, model: Callable[..., Tensor], batch: Batch) -> Any:
        """f(x_t, t) in the configured precision."""
        x_t = ops.q_sample(batch.x0, batch.t, self.schedule, seed=self.seed, sample_offset=batch.sample_offset)
        with self.autocast():
            return model(x_t, batch.t, **batch.inputs)

    def loss(self, prediction: Any, batch: Batch) -> Tensor:
        """The scalar loss, in fp32."""
        diffusion = self.config.diffusion
        values = None
        if diffusion.learned_variance:
            prediction, values = split_prediction(prediction, batch.x0)
        simple = ops.diffusion_loss(
            prediction, batch.x0, batch.t, self.schedule, target=diffusion.target, seed=self.seed,
            sample_offset=batch.sample_offset, weighting=diffusion.weighting, gamma=diffusion.gamma,
        )  # fmt: skip
        return simple if values is None else simple + self._variational(prediction, values, batch)

    def _variational(self, prediction: Tensor, values: Tensor, batch: Batch) -> Tensor:
        """weight * sum_t L_t, estimated by T times the mean over the batch's timesteps; it trains the variance alone.

        Source: Nichol and Dhariwal 2021, "Improved Denoising Diffusion Probabilistic Models", eq. 16.
        """
        diffusion = self.config.diffusion
        x_t = ops.q_sample(batch.x0, batch.t, self.schedule, seed=self.seed, sample_offset=batch.sample_offset)
        bound = variational_bound(
            prediction, values, x_t, batch.x0, batch.t, self.schedule, target=diffusion.target,
            bin_width=2 / 255 if self.source is None and self.config.data.values == "pixels" else None,
        )  # fmt: skip
        return diffusion.variational_weight * diffusion.timesteps * bound.mean()

    def autocast(self) -> AbstractContextManager[Any]:
        precision = resolved_precision(self.config.runtime.precision, self.device)
        if precision == "fp32":
            return nullcontext()
        return torch.autocast(self.device.type, AUTOCAST_DTYPES[precision])
