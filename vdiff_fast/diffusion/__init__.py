"""Schedules, processes and samplers."""

from vdiff_fast.diffusion.churn import Churn
from vdiff_fast.diffusion.conditioning import (
    ConditionError,
    box_mask,
    condition,
    frame_mask,
    keep_known,
    require_conditioning,
)
from vdiff_fast.diffusion.guidance import Guidance, as_guidance
from vdiff_fast.diffusion.learned_variance import split_prediction
from vdiff_fast.diffusion.long import (
    LongVideoPlan,
    Segment,
    SegmentError,
    interpolate,
    long_video_plan,
    sample_autoregressive,
    sample_long,
)
from vdiff_fast.diffusion.modulation import ModulationTable
from vdiff_fast.diffusion.noise import Noise
from vdiff_fast.diffusion.process import diffuse_step, to_noise, to_target, to_x0
from vdiff_fast.diffusion.sampler_table import SamplerTable, sampler_table
from vdiff_fast.diffusion.samplers import SAMPLERS, Sampler
from vdiff_fast.diffusion.sampling import SamplingInterrupted, decode_in_chunks, sample
from vdiff_fast.diffusion.schedule import NoiseSchedule

__all__ = [
    "SAMPLERS",
    "Churn",
    "ConditionError",
    "Guidance",
    "LongVideoPlan",
    "ModulationTable",
    "Noise",
    "NoiseSchedule",
    "Sampler",
    "SamplerTable",
    "SamplingInterrupted",
    "Segment",
    "SegmentError",
    "as_guidance",
    "box_mask",
    "condition",
    "decode_in_chunks",
    "diffuse_step",
    "frame_mask",
    "interpolate",
    "keep_known",
    "long_video_plan",
    "require_conditioning",
    "sample",
    "sample_autoregressive",
    "sample_long",
    "sampler_table",
    "split_prediction",
    "to_noise",
    "to_target",
    "to_x0",
]
