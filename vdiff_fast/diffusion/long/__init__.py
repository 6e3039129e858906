"""Videos longer than the model: diffusion over diffusion, its comparison by clip after clip, and interpolation.

`plan` says which clips make a video, `clips` draws numbered clips, `batches` shares them among ranks, `files` keeps
them on disk, `sample` puts the video together.
"""

from vdiff_fast.diffusion.long.files import SegmentError
from vdiff_fast.diffusion.long.plan import LongVideoPlan, Segment, long_video_plan
from vdiff_fast.diffusion.long.sample import interpolate, sample_autoregressive, sample_long

__all__ = [
    "LongVideoPlan",
    "Segment",
    "SegmentError",
    "interpolate",
    "long_video_plan",
    "sample_autoregressive",
    "sample_long",
]
