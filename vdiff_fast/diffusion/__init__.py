"""Schedules, processes and samplers."""

from vdiff_fast.diffusion.schedule import NoiseSchedule

__all__ = ["NoiseSchedule"]
