"""Diffusion over diffusion: which clips make a long video, level by level (NUWA-XL, Yin et al. 2023, section 3.2)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Segment:
    """One clip to denoise.

    Attributes:
        level: 0 is the global clip of key frames, levels - 1 the last one.
        index: its place among the clips of its level; with the level it names the noise of the clip.
        frames: where its `clip` frames stand in the finished video, equally spaced.
        known: positions within the clip whose frames are given: none at level 0, both ends below.
    """

    level: int
    index: int
    frames: range
    known: tuple[int, ...]


@dataclass(frozen=True)
class LongVideoPlan:
    """A video of (clip - 1)^levels + 1 frames from clips of `clip` frames that share their end frames.

    Level 0 makes `clip` key frames. Each pair of neighbours is then the first and the last frame of a clip of the next
    level, and all clips of a level are independent of each other.

    Attributes:
        clip: frames of one clip, L >= 3.
        levels: m >= 1.
        length: how many frames are wanted; the rest of the last clips is cut off, and clips beyond it are left out.
    """

    clip: int = 16
    levels: int = 3
    length: int | None = None

    def __post_init__(self) -> None:
        for name, value, least in (("clip", self.clip, 3), ("levels", self.levels, 1)):
            if not isinstance(value, int) or isinstance(value, bool):
                raise TypeError(f"long_video_plan: {name} must be an int, got {value!r}")
            if value < least:
                raise ValueError(f"long_video_plan: {name} must be at least {least}, got {value}")
        if self.length is None:
            return
        if not isinstance(self.length, int) or isinstance(self.length, bool):
            raise TypeError(f"long_video_plan: length must be an int or None, got {self.length!r}")
        if self.length < 1:
            raise ValueError(f"long_video_plan: length must be at least 1, got {self.length}")
        if self.length > self.full_frames:
            raise ValueError(
                f"long_video_plan: length must be within [1, {self.full_frames}], what {self.levels} level(s) of "
                f"{self.clip} frames reach; got {self.length}; levels={self.levels_for(self.clip, self.length)} fits"
            )

    @staticmethod
    def levels_for(clip: int, length: int) -> int:
        """The fewest levels that reach `length` frames."""
        levels = 1
        while (clip - 1) ** levels + 1 < length:
            levels += 1
        return levels

    @property
    def full_frames(self) -> int:
        """(clip - 1)^levels + 1."""
        return int((self.clip - 1) ** self.levels + 1)

    @property
    def frames(self) -> int:
        """Frames of the finished video."""
        return self.full_frames if self.length is None else self.length

    @property
    def rounds(self) -> int:
        """Levels one after another: the clips of each run together."""
        return self.levels

    @property
    def clips(self) -> int:
        """Clips to denoise: 1 + (clip - 1) + (clip - 1)^2 + ... where nothing is cut off."""
        return sum(self.clips_of(level) for level in range(self.levels))

    def stride(self, level: int) -> int:
        """Distance in the finished video between neighbouring frames of a clip of this level."""
        self._check_level(level)
        return int((self.clip - 1) ** (self.levels - 1 - level))

    def clips_of(self, level: int) -> int:
        """Clips of a level that hold a wanted frame which the levels above do not."""
        covered = self.stride(level) * (self.clip - 1)
        return max(1, -(-(self.frames - 1) // covered))

    def first_clip(self, level: int) -> int:
        """The number of a level's first clip among the clips of all levels, the plan taken uncut."""
        self._check_level(level)
        return sum((self.clip - 1) ** above for above in range(level))

    def segments(self, level: int) -> Iterator[Segment]:
        """The clips of a level, in the order of the video."""
        stride = self.stride(level)
        span = stride * (self.clip - 1)
        known = () if level == 0 else (0, self.clip - 1)
        for index in range(self.clips_of(level)):
            yield Segment(level, index, range(index * span, (index + 1) * span + 1, stride), known)

    def _check_level(self, level: int) -> None:
        if not 0 <= level < self.levels:
            raise ValueError(f"level {level} is not within the plan's {self.levels} levels")

    def __str__(self) -> str:
        return (
            f"{self.frames} frames: {self.levels} levels of {self.clip}-frame clips, {self.clips} clips in "
            f"{self.rounds} rounds"
        )


def long_video_plan(clip: int = 16, levels: int = 3, *, length: int | None = None) -> LongVideoPlan:
    """frames = (clip - 1)^levels + 1: the clips, level by level, of a long video whose clips share their end frames.

    Args:
        clip: frames that the model makes at once, at least 3.
        levels: how deep; 1 is one clip.
        length: frames wanted, at most (clip - 1)^levels + 1; all of them where it is left out.

    Raises:
        TypeError: not ints.
        ValueError: a clip or a level count too small, or a length that the levels do not reach.

    Source: Yin et al. 2023, "NUWA-XL: Diffusion over Diffusion for eXtremely Long Video Generation".
    """
    return LongVideoPlan(clip, levels, length)
