"""Look at a whole video once: how many frames there really are, when each is shown, and whether the file is sound."""

from __future__ import annotations

import os
import zlib
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from vdiff_fast._files import printable
from vdiff_fast.data.container import Tally, decode_packets, open_video, reading
from vdiff_fast.data.errors import CorruptVideoError, EmptyVideoError, TruncatedVideoError, VideoError
from vdiff_fast.data.gif_blocks import gif_problem
from vdiff_fast.data.pixels import frame_orientation, frame_to_rgb, is_mirrored, is_transposed, rotation
from vdiff_fast.data.timeline import TimeLine, plausible_rate, time_line
from vdiff_fast.data.tone_map import TRANSFERS, Transfer

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

# Their frames are painted over earlier ones while every packet claims to be a key frame, so a seek shows garbage.
_PAINTED_FORMATS = frozenset({"gif", "apng", "webp_anim"})
# A frame's sum is taken over every eighth row: no row of blocks is passed over.
_SUMMED_ROWS = 8


@dataclass(frozen=True)
class Tolerance:
    """How much damage a file may have, as fractions of its frames. One missing frame is always allowed."""

    max_missing: float = 0.02
    max_corrupt: float = 0.0


DEFAULT_TOLERANCE = Tolerance()


@dataclass(frozen=True)
class VideoScan:
    """What decoding a whole file has shown. Stored sizes are as displayed (square pixels), before the turn.

    `orientation` is EXIF's number of the eight ways to turn and mirror what is stored. `hidden` frames are stored and
    shown by no player (before the start of an edit list, before the first key frame). `transfer` is "PQ" or "HLG" for
    high dynamic range, `interlaced` counts frames of two fields.

    `times` are seconds from the first frame, one per frame in the decoder's order, never decreasing, with `closed`
    seconds of holes taken out. `pts` are the stream's own time stamps in the same order; they identify frames after a
    seek where `seekable` is true, and `sums` tell whether the frame found there is the one that this look has seen.
    `broken` says what is wrong with a file's structure where FFmpeg reads past it.
    """

    path: str
    codec: str
    stored_width: int
    stored_height: int
    orientation: int
    declared: int | None
    declared_duration: float | None
    corrupt: int
    failed_packets: int
    hidden: int
    nominal_fps: float
    times: np.ndarray = field(repr=False)
    pts: np.ndarray = field(repr=False)
    sums: np.ndarray = field(repr=False)
    seekable: bool
    closed: float = 0.0
    transfer: Transfer = ""
    interlaced: int = 0
    note: str = ""
    broken: str = ""

    @property
    def name(self) -> str:
        return printable(Path(self.path).name)

    @property
    def decoded(self) -> int:
        return len(self.times)

    @property
    def width(self) -> int:
        return self.stored_height if is_transposed(self.orientation) else self.stored_width

    @property
    def height(self) -> int:
        return self.stored_width if is_transposed(self.orientation) else self.stored_height

    @property
    def rotation(self) -> int:
        """Degrees counter-clockwise by which a player turns what is stored, after mirroring it where `mirrored`."""
        return rotation(self.orientation)

    @property
    def mirrored(self) -> bool:
        return is_mirrored(self.orientation)

    @property
    def interval(self) -> float:
        """Typical seconds from one frame to the next: the median, since pauses must not slow a video down."""
        if self.decoded < 2:
            return 1.0 / self.nominal_fps
        return float(np.median(np.diff(self.times)))

    @property
    def duration(self) -> float:
        return float(self.times[-1]) + self.interval if self.decoded else 0.0

    @property
    def fps(self) -> float:
        """Frames per second by the time stamps: the mean where it is constant, else by the typical interval."""
        if self.decoded < 2 or self.variable:
            return 1.0 / self.interval
        return (self.decoded - 1) / float(self.times[-1])

    @property
    def variable(self) -> bool:
        """Whether some frame is shown half an interval or more away from an even grid (rounded stamps are not)."""
        if self.decoded < 3:
            return False
        even = np.linspace(0.0, float(self.times[-1]), self.decoded)
        return bool(np.abs(self.times - even).max() >= 0.5 * self.times[-1] / (self.decoded - 1))

    @property
    def missing(self) -> int:
        """Frames that the header declares and the file lacks at its end; 0 where the time stamps reach that end.

        A header can declare more frames than are stored because repeated ones are left out (AVI): time tells.
        """
        lacking = (self.declared_duration or 0.0) - self.duration - self.closed
        if lacking <= 0.0:
            return 0
        by_time = round(lacking * self.fps)
        return by_time if self.declared is None else max(0, min(self.declared - self.hidden - self.decoded, by_time))

    def to_rgb(self, frame: VideoFrame) -> np.ndarray:
        """A decoded frame of this file as `frame_to_rgb` shows it."""
        return frame_to_rgb(frame, self.stored_width, self.stored_height, self.orientation, name=self.name)

    def saw(self, index: int, frame: VideoFrame) -> bool:
        """Whether this is the frame that the scan saw at `index`."""
        return index < self.decoded and frame_sum(frame) == self.sums[index]

    def lost(self, index: int) -> VideoError:
        """The error of a frame that is not there, or is another one than the scan saw."""
        return TruncatedVideoError(
            f"{self.name}: frame {index} of {self.decoded} is gone, damaged or not the one that was scanned; scan it "
            "again"
        )

    def grid(self, fps: float | None = None) -> np.ndarray:
        """Index of the frame on display at times k / fps, k = 0, 1, ...: an even rate whatever the file's (int64).

        Without `fps`: every frame once where the rate is constant, else the rate of the typical interval.
        """
        if fps is not None and not fps > 0:
            raise ValueError(f"fps must be positive, got {fps}")
        if fps is None and not self.variable:
            return np.arange(self.decoded)
        rate = self.fps if fps is None else fps
        count = max(1, int(np.floor(self.duration * rate + 1e-6)))
        # A quarter of the smaller interval absorbs stamps that a container has rounded (milliseconds, say).
        slack = 0.25 * min(self.interval, 1.0 / rate)
        return np.searchsorted(self.times, np.arange(count) / rate + slack, side="right") - 1

    def counts(self) -> str:
        """For people: "decoded 399 of 795 declared frames (20 flagged corrupt)"."""
        declared = f" of {self.declared} declared frames" if self.declared else " frames"
        hidden = f" ({self.hidden} never shown)" if self.hidden else ""
        flagged = f" ({self.corrupt} flagged corrupt)" if self.corrupt else ""
        failed = f", {self.failed_packets} packets could not be decoded" if self.failed_packets else ""
        return f"decoded {self.decoded}{declared}{hidden}{flagged}{failed}"

    def problem(self, tolerance: Tolerance = DEFAULT_TOLERANCE) -> VideoError | None:
        """The error that this file deserves, or None if it is good enough."""
        if not self.decoded:
            return EmptyVideoError(f"{self.name}: {self.counts()}")
        total = self.decoded + self.missing
        if self.missing > max(1, tolerance.max_missing * total):
            end = f"; it ends at {self.duration:.2f} s of {self.declared_duration:.2f} s"
            return TruncatedVideoError(f"{self.name}: {self.counts()}{'' if self.declared else end}")
        if self.broken and tolerance.max_missing < 1.0:
            return TruncatedVideoError(f"{self.name}: {self.counts()}; {self.broken}")
        if self.corrupt + self.failed_packets > tolerance.max_corrupt * total:
            return CorruptVideoError(f"{self.name}: {self.counts()}")
        return None


@dataclass
class _Seen:
    """What the frames have shown, one after the other."""

    pts: list[int | None] = field(default_factory=list)
    sums: list[int] = field(default_factory=list)
    corrupt: int = 0
    interlaced: int = 0

    def add(self, frame: VideoFrame) -> None:
        self.pts.append(frame.pts)
        self.sums.append(frame_sum(frame))
        self.corrupt += bool(frame.is_corrupt)
        self.interlaced += bool(frame.interlaced_frame)


def frame_sum(frame: VideoFrame) -> int:
    """CRC-32 of every eighth row of a decoded frame: tells after a seek whether this is the frame that was meant."""
    planes = frame.planes
    sample = (frame.format.components[0].bits + 7) // 8
    # Rows end in padding of any content; packed formats keep all components in one plane.
    step = sample if len(planes) > 1 else max(1, frame.format.padded_bits_per_pixel // 8)
    total = 0
    for plane in planes:
        stride = abs(plane.line_size)
        if not stride:  # a palette
            continue
        rows = np.frombuffer(memoryview(plane), dtype=np.uint8).reshape(-1, stride)
        total = zlib.crc32(rows[::_SUMMED_ROWS, : plane.width * step].tobytes(), total)
    return total


def scan(path: str | os.PathLike[str], *, threads: int = 0) -> VideoScan:
    """Decode the file from end to end, keep no picture, and report what is there.

    "No exception" is not "good": a truncated AVI ends quietly and a damaged MP4 gives all its frames. So decoded frames
    are counted against the declared ones that a player shows, `frame.is_corrupt` is read, and time stamps are taken
    from the frames and believed only where a video can have them.

    Errors: `UnreadableVideoError`, `EmptyVideoError`. Damage is not raised here: see `VideoScan.problem`.
    """
    tally, seen = Tally(), _Seen()
    name = printable(Path(path).name)
    with open_video(path, threads=threads) as (container, stream):
        first: _FirstFrame | None = None
        for frame in decode_packets(container, stream, tally):
            with reading(path):
                first = first or _FirstFrame.of(frame, stream, container.format.name, name)
                seen.add(frame)
        declared = stream.frames or None
        if first is None:
            stated = f" of {declared} declared" if declared else ""
            raise EmptyVideoError(f"{name}: decoded 0{stated} frames")
        with reading(path):
            codec, container_format = stream.codec_context.codec.name, container.format.name
            rate = stream.average_rate
            line = time_line(seen.pts, stream.time_base or Fraction(1, 25), rate)
            declared_duration = _declared_duration(container, stream, tally, line)
    return VideoScan(
        path=os.fspath(path), codec=codec, stored_width=first.width, stored_height=first.height,
        orientation=first.orientation, declared=declared, declared_duration=declared_duration,
        corrupt=max(seen.corrupt, tally.corrupt_packets), failed_packets=tally.failed_packets, hidden=tally.hidden,
        nominal_fps=plausible_rate(rate), times=line.times, pts=line.pts, sums=np.array(seen.sums, dtype=np.uint32),
        seekable=line.in_order and container_format not in _PAINTED_FORMATS, closed=line.closed,
        transfer=first.transfer, interlaced=seen.interlaced, note=line.note,
        # FFmpeg takes a GIF's frame count from what is there, so a cut one agrees with itself.
        broken=gif_problem(path) if container_format == "gif" else "",
    )  # fmt: skip


@dataclass(frozen=True)
class _FirstFrame:
    """What the first frame says about the pictures: displayed size, turn, range of brightness."""

    width: int
    height: int
    orientation: int
    transfer: Transfer

    @classmethod
    def of(cls, frame: VideoFrame, stream: VideoStream, container_format: str, name: str) -> _FirstFrame:
        aspect = stream.sample_aspect_ratio or Fraction(1)
        # GIF writers fill the aspect byte with anything, and no viewer reads it.
        trusted = container_format not in _PAINTED_FORMATS and Fraction(1, 4) <= aspect <= 4
        width = max(1, round(frame.width * aspect)) if trusted else frame.width
        # Pixels that cannot be converted are better known now than in the middle of training.
        frame_to_rgb(frame, min(width, 16), min(frame.height, 16), name=name)
        transfer = TRANSFERS.get(int(frame.color_trc), "")
        return cls(width, frame.height, frame_orientation(frame), transfer)


def _declared_duration(container: InputContainer, stream: VideoStream, tally: Tally, line: TimeLine) -> float | None:
    """Seconds of video shown, by the header: from the stream; else the container's if all streams end before it."""
    known = []
    # Frames before the first key frame take time, and are not shown.
    lead = 0.0
    if tally.early and stream.time_base and stream.start_time is not None and len(line.pts):
        lead = max(0.0, float((int(line.pts[0]) - stream.start_time) * stream.time_base))
    if stream.frames and stream.average_rate:
        known.append((stream.frames - tally.hidden) / float(stream.average_rate))
    if stream.duration and stream.time_base:
        known.append(float(stream.duration * stream.time_base) - lead)
    if known:
        return max(known)
    if container.duration is None:
        return None
    total = container.duration / 1e6
    # Sound that outlasts the pictures is no damage: then some packet does reach the end.
    return total - lead if tally.end < 0.98 * total else None
