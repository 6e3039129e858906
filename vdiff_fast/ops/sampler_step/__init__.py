from vdiff_fast.ops.sampler_step.api import sampler_step

__all__ = ["sampler_step"]
