"""The random draws of a training step: pure functions of the seed and of how many samples came before."""

from __future__ import annotations

import torch
from torch import Tensor

from vdiff_fast.diffusion.schedule import shifted
from vdiff_fast.ops import noise

# Streams of the counter-based noise; 0 is the noise itself, 1 + i is sampler step i.
_TIMESTEPS, _LABELS = -1, -2
# Of logit-normal times, log(s / (1 - s)) ~ N(mean, 1): Geng et al. 2025, "Mean Flows", table 1d.
_LOGIT_MEAN = -0.4


def uniforms(count: int, numbers: int, seed: int, sample_offset: int, stream: int) -> Tensor:
    """u = Phi(z) in float64, (count, numbers): uniform on (0, 1), the same for any split into batches."""
    z = noise((count, numbers), seed, sample_offset=sample_offset, stream=stream, dtype=torch.float32, device="cpu")
    return torch.special.ndtr(z.double())


def _uniform(count: int, seed: int, sample_offset: int, stream: int) -> Tensor:
    return uniforms(count, 1, seed, sample_offset, stream).flatten()


def timesteps(count: int, steps: int, seed: int, sample_offset: int) -> Tensor:
    """t = floor(steps * u), int64 (count,), on the CPU; sample b's draw depends on sample_offset + b alone."""
    t = (_uniform(count, seed, sample_offset, _TIMESTEPS) * steps).long()
    return t.clamp_(max=steps - 1)


def flow_times(count: int, shift: float, seed: int, sample_offset: int) -> Tensor:
    """s = shifted(u), float32 (count,) in [0, 1], on the CPU; sample b's draw depends on sample_offset + b alone."""
    return shifted(_uniform(count, seed, sample_offset, _TIMESTEPS), shift).float()


def intervals(count: int, share: float, seed: int, sample_offset: int) -> tuple[Tensor, Tensor]:
    """(r, t) with r <= t of two logit-normal times, float32 (count,), on the CPU; r = t but for `share` of the samples.

    Source: Geng et al. 2025, "Mean Flows for One-step Generative Modeling", section 4.3.
    """
    z = noise((count, 3), seed, sample_offset=sample_offset, stream=_TIMESTEPS, dtype=torch.float32, device="cpu")
    times = torch.sigmoid(z[:, :2].double() + _LOGIT_MEAN)
    r, t = times.amin(1), times.amax(1)
    apart = torch.special.ndtr(z[:, 2].double()) < share
    return torch.where(apart, r, t).float(), t.float()


def dropped_labels(count: int, probability: float, seed: int, sample_offset: int) -> Tensor:
    """True for samples that are trained without their label, bool (count,), on the CPU."""
    return _uniform(count, seed, sample_offset, _LABELS) < probability


def seed_torch(seed: int, step: int, rank: int) -> None:
    """Seed torch's own generators for one step: dropout repeats on resume, and ranks differ."""
    torch.manual_seed((seed * 1_000_003 + step) * 65_537 + rank & 0x7FFF_FFFF_FFFF_FFFF)
