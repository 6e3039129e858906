"""What can be wrong with a video, as types; every message names the file, what was found and what to do."""

from __future__ import annotations


class VideoError(ValueError):
    """A video that cannot be used. Takes one message, so that it survives the way back from a loader's worker."""


class UnreadableVideoError(VideoError):
    """No container or codec recognises the file, or it holds no video stream."""


class EmptyVideoError(VideoError):
    """The file opens, and not one frame comes out."""


class TruncatedVideoError(VideoError):
    """The file ends before its header says."""


class CorruptVideoError(VideoError):
    """The decoder flagged frames as damaged, or could not decode packets."""


class ShortVideoError(VideoError):
    """The video is sound but has fewer frames than one clip."""


class EmptyDatasetError(VideoError):
    """No usable video at all."""


class TooManyBadVideosError(VideoError):
    """More files were skipped than the limit allows."""


class VideoTooLargeError(VideoError):
    """The decoded video would not fit in the memory it was given."""


class ValueRangeError(ValueError):
    """Pixel values lie in another range than [-1, 1]."""


class DatasetItemError(ValueError):
    """An item of a user's own data set is no video, or the data set cannot be asked for items by number."""


class SamplerStateError(ValueError):
    """A saved data position belongs to another data set, seed or batch size."""


class VideoWriteError(ValueError):
    """The frames, the file name or the options cannot be written as a video."""
