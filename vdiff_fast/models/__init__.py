"""Denoisers for video."""

from vdiff_fast.models.unet_config import VideoUNetConfig
from vdiff_fast.models.video_unet import VideoUNet

__all__ = ["VideoUNet", "VideoUNetConfig"]
