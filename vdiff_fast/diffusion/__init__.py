"""Schedules, processes and samplers."""

from vdiff_fast.diffusion.long_video import LongVideoPlan, Segment, long_video_plan
from vdiff_fast.diffusion.modulation import ModulationTable
from vdiff_fast.diffusion.process import diffuse_step, to_noise, to_target, to_x0
from vdiff_fast.diffusion.sampler_table import SamplerTable, sampler_table
from vdiff_fast.diffusion.sampling import SamplingInterrupted, decode_in_chunks, sample
from vdiff_fast.diffusion.schedule import NoiseSchedule

__all__ = [
    "LongVideoPlan",
    "ModulationTable",
    "NoiseSchedule",
    "SamplerTable",
    "SamplingInterrupted",
    "Segment",
    "decode_in_chunks",
    "diffuse_step",
    "long_video_plan",
    "sample",
    "sampler_table",
    "to_noise",
    "to_target",
    "to_x0",
]
