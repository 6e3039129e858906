"""A tiny model that takes conditions, and the settings of tests on long videos."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import vdiff_fast as vf
from tests.models.helpers import small_dit, small_unet
from vdiff_fast.diffusion import LongVideoPlan, NoiseSchedule, sample_long

FRAME = (2, 8, 8)
PLAN = vf.diffusion.long_video_plan(4, 3)  # 28 frames from 1 + 3 + 9 clips
SCHEDULE = NoiseSchedule.cosine(50)
OPTIONS: dict[str, Any] = {"steps": 2, "target": "v", "sampler": "ddpm", "clip": 1.0}


MASKED = {"in_channels": 2, "out_channels": 2, "cond_channels": 3, "condition_injection": "blocks"}


def masked_unet(**changes: Any) -> vf.models.VideoUNet:
    """A two-level VideoUNet of 2 channels whose every branch is awake, its condition injected in the blocks."""
    return small_unet(1, **MASKED | changes).eval()


def masked_dit(**changes: Any) -> vf.models.VideoDiT:
    """A two-block VideoDiT, likewise."""
    return small_dit(1, **MASKED | changes).eval()


def long_video(model: Any, plan: LongVideoPlan = PLAN, **changes: Any) -> Tensor:
    with torch.no_grad():
        return sample_long(model, plan, SCHEDULE, **{"frame_shape": FRAME, "seed": 3} | OPTIONS | changes)
