"""Buckets of (frames, height, width): every batch holds clips of one."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

# Aspect ratios (height over width) that clips are sorted into where no buckets are given.
_ASPECTS = (1.0, 3 / 4, 4 / 3, 9 / 16, 16 / 9)


class BucketError(ValueError):
    """A bucket that cannot be read, or a clip that no bucket fits; the message says what would."""


class Bucket(NamedTuple):
    """The shape of a clip in pixels."""

    frames: int
    height: int
    width: int

    def __str__(self) -> str:
        return f"{self.frames}x{self.height}x{self.width}"


def parse_bucket(text: str) -> Bucket:
    """ "17x32x48" as frames, height and width.

    Raises:
        BucketError: the text is something else.
    """
    parts = text.lower().split("x")
    if len(parts) != 3 or not all(part.isdigit() and int(part) > 0 for part in parts):
        raise BucketError(f"bucket {text!r}: give FRAMESxHEIGHTxWIDTH, such as 17x256x384")
    return Bucket(*map(int, parts))


def choose_bucket(buckets: Sequence[Bucket], frames: int, height: int, width: int) -> Bucket:
    """The bucket of a video: of those it is long enough for, the nearest in aspect, the longest, the largest.

    Raises:
        BucketError: the video is shorter than every bucket.
    """
    long_enough = [bucket for bucket in buckets if bucket.frames <= frames]
    if not long_enough:
        raise BucketError(f"{frames} frames < {min(b.frames for b in buckets)}, the shortest bucket; add a shorter one")
    aspect = math.log(height / width)

    def preference(bucket: Bucket) -> tuple[float, int, int]:
        distance = abs(math.log(bucket.height / bucket.width) - aspect)
        return round(distance, 6), -bucket.frames, -bucket.height * bucket.width

    return min(long_enough, key=preference)


def suggested_buckets(
    videos: Iterable[tuple[int, int, int]], frames: int, size: int, step: tuple[int, int]
) -> list[Bucket]:
    """Buckets that a folder's videos (frames, height, width) fall into: about size^2 pixels, and `frames` or fewer.

    Lengths are 1 + step k: `frames`, and halves of it for shorter videos; sides are multiples of the second step.
    """
    along_time, along_space = step
    lengths = []
    length = frames
    while length >= 1:
        fitting = 1 + (length - 1) // along_time * along_time
        lengths.append(fitting)
        length = fitting // 2
    sides = [(size * math.sqrt(aspect), size / math.sqrt(aspect)) for aspect in _ASPECTS]
    rounded = [tuple(max(1, round(side / along_space)) * along_space for side in pair) for pair in sides]
    candidates = [Bucket(n, *pair) for n in dict.fromkeys(lengths) for pair in dict.fromkeys(rounded)]
    return sorted({choose_bucket(candidates, *video) for video in videos}, reverse=True)
