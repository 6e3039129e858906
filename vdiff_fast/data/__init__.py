"""Videos in and out: decode, check, cache, clips, resumable loading, writing. PyAV is imported when needed."""

from vdiff_fast.data.assets import demo_clip
from vdiff_fast.data.cache import FrameCache
from vdiff_fast.data.check import CheckReport, FileCheck, check_video, check_videos
from vdiff_fast.data.dataset import SkippedFile, VideoFile, VideoFolder, open_dataset
from vdiff_fast.data.decode import DecodedVideo, decode, read_frames, read_picture
from vdiff_fast.data.digits import MovingDigits
from vdiff_fast.data.draw import Draw, permutation
from vdiff_fast.data.errors import (
    CorruptVideoError,
    DatasetItemError,
    EmptyDatasetError,
    EmptyVideoError,
    SamplerStateError,
    ShortVideoError,
    TooManyBadVideosError,
    TruncatedVideoError,
    UnreadableVideoError,
    ValueRangeError,
    VideoError,
    VideoTooLargeError,
    VideoWriteError,
)
from vdiff_fast.data.find import find_videos
from vdiff_fast.data.postprocess import grid, postprocess, smooth_temporal, to_uint8, upscale
from vdiff_fast.data.sampler import ClipKey, ClipLoader, ClipSampler, collate, loader
from vdiff_fast.data.scan import Tolerance, VideoScan, scan
from vdiff_fast.data.transforms import ClipSpec, check_range, to_unit_range
from vdiff_fast.data.write import VideoPaddedWarning, WrittenVideo, contact_sheet, write_png, write_video

__all__ = [
    "CheckReport",
    "ClipKey",
    "ClipLoader",
    "ClipSampler",
    "ClipSpec",
    "CorruptVideoError",
    "DatasetItemError",
    "DecodedVideo",
    "Draw",
    "EmptyDatasetError",
    "EmptyVideoError",
    "FileCheck",
    "FrameCache",
    "MovingDigits",
    "SamplerStateError",
    "ShortVideoError",
    "SkippedFile",
    "Tolerance",
    "TooManyBadVideosError",
    "TruncatedVideoError",
    "UnreadableVideoError",
    "ValueRangeError",
    "VideoError",
    "VideoFile",
    "VideoFolder",
    "VideoPaddedWarning",
    "VideoScan",
    "VideoTooLargeError",
    "VideoWriteError",
    "WrittenVideo",
    "check_range",
    "check_video",
    "check_videos",
    "collate",
    "contact_sheet",
    "decode",
    "demo_clip",
    "find_videos",
    "grid",
    "loader",
    "open_dataset",
    "permutation",
    "postprocess",
    "read_frames",
    "read_picture",
    "scan",
    "smooth_temporal",
    "to_uint8",
    "to_unit_range",
    "upscale",
    "write_png",
    "write_video",
]
