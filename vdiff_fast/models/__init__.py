"""Denoisers for video."""

from vdiff_fast.models.convert import from_diffusers, from_dit, from_latte
from vdiff_fast.models.dit_config import VideoDiTConfig
from vdiff_fast.models.unet_config import VideoUNetConfig
from vdiff_fast.models.video_dit import VideoDiT
from vdiff_fast.models.video_unet import VideoUNet

__all__ = ["VideoDiT", "VideoDiTConfig", "VideoUNet", "VideoUNetConfig", "from_diffusers", "from_dit", "from_latte"]
