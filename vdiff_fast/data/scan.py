"""Look at a whole video once: how many frames there really are, when each is shown, and whether the file is sound."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .errors import CorruptVideoError, EmptyVideoError, TruncatedVideoError, UnreadableVideoError, VideoError

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

# Their frames are painted over earlier ones while every packet claims to be a key frame, so a seek shows garbage.
_PAINTED_FORMATS = frozenset({"gif", "apng", "webp_anim"})
# libswscale's flags.
SWS_BICUBIC, SWS_ACCURATE_RND = 0x4, 0x40000


def import_av() -> Any:
    """PyAV, or an ImportError that says how to get it."""
    try:
        import av
    except ImportError as error:
        raise ImportError("reading and writing videos needs PyAV: pip install 'vdiff-fast[video]'") from error
    return av


@dataclass(frozen=True)
class Tolerance:
    """How much damage a file may have, as fractions of its frames. One missing frame is always allowed."""

    max_missing: float = 0.02
    max_corrupt: float = 0.0


DEFAULT_TOLERANCE = Tolerance()


@dataclass(frozen=True)
class VideoScan:
    """What decoding a whole file has shown. Sizes are as displayed (square pixels), before `rotation` is applied.

    `times` are seconds from the first frame, one per frame in the decoder's order, never decreasing. `pts` are the
    stream's own time stamps in the same order; they identify frames after a seek where `seekable` is true.
    """

    path: str
    codec: str
    stored_width: int
    stored_height: int
    rotation: int
    declared: int | None
    declared_duration: float | None
    corrupt: int
    failed_packets: int
    nominal_fps: float | None
    times: np.ndarray = field(repr=False)
    pts: np.ndarray = field(repr=False)
    seekable: bool
    note: str = ""
    ends_early: bool = False

    @property
    def name(self) -> str:
        return Path(self.path).name

    @property
    def decoded(self) -> int:
        return len(self.times)

    @property
    def width(self) -> int:
        return self.stored_height if self.rotation % 180 else self.stored_width

    @property
    def height(self) -> int:
        return self.stored_width if self.rotation % 180 else self.stored_height

    @property
    def interval(self) -> float:
        """Typical seconds from one frame to the next: the median, since pauses must not slow a video down."""
        if self.decoded < 2:
            return 1.0 / (self.nominal_fps or 25.0)
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
        if self.declared_duration is None or self.declared_duration <= self.duration:
            return 0
        if self.declared is None:
            return round((self.declared_duration - self.duration) / self.interval)
        return max(0, min(self.declared - self.decoded, round((self.declared_duration - self.duration) * self.fps)))

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
        flagged = f" ({self.corrupt} flagged corrupt)" if self.corrupt else ""
        failed = f", {self.failed_packets} packets could not be decoded" if self.failed_packets else ""
        return f"decoded {self.decoded}{declared}{flagged}{failed}"

    def problem(self, tolerance: Tolerance = DEFAULT_TOLERANCE) -> VideoError | None:
        """The error that this file deserves, or None if it is good enough."""
        if not self.decoded:
            return EmptyVideoError(f"{self.name}: {self.counts()}")
        total = self.decoded + self.missing
        if self.missing > max(1, tolerance.max_missing * total):
            end = f"; it ends at {self.duration:.2f} s of {self.declared_duration:.2f} s"
            return TruncatedVideoError(f"{self.name}: {self.counts()}{'' if self.declared else end}")
        if self.ends_early and tolerance.max_missing < 1.0:
            return TruncatedVideoError(f"{self.name}: {self.counts()}; the file ends without its end mark")
        if self.corrupt + self.failed_packets > tolerance.max_corrupt * total:
            return CorruptVideoError(f"{self.name}: {self.counts()}")
        return None


@contextmanager
def open_video(path: str | os.PathLike[str], *, threads: int = 0) -> Iterator[tuple[InputContainer, VideoStream]]:
    """The container and its first video stream, closed at the end. `threads` 0 lets FFmpeg choose.

    Errors: `FileNotFoundError`; `UnreadableVideoError` for an empty file, a text file, a file without video.
    """
    av = import_av()
    name = Path(path).name
    if os.path.getsize(path) == 0:
        raise UnreadableVideoError(f"{name}: the file is empty (0 bytes)")
    try:
        container = av.open(os.fspath(path))
    except av.error.FFmpegError as error:
        raise UnreadableVideoError(f"{name}: not a video that FFmpeg can read ({error.strerror})") from error
    with container:
        stream = container.streams.best("video")
        # FFmpeg plays text files as ANSI art; nobody trains on that.
        if container.format.name == "tty":
            raise UnreadableVideoError(f"{name}: a text file, not a video")
        if stream is None or stream.codec_context is None:
            raise UnreadableVideoError(f"{name}: no video stream that can be decoded")
        stream.thread_type = "AUTO"
        stream.codec_context.thread_count = threads
        yield container, stream


def _ends_with(path: str | os.PathLike[str], mark: bytes) -> bool:
    """Whether the file ends with `mark`, padding aside."""
    with open(path, "rb") as file:
        file.seek(max(0, os.path.getsize(path) - 64))
        return file.read().rstrip(b"\0\r\n").endswith(mark)


@dataclass
class _Tally:
    pts: list[int | None] = field(default_factory=list)
    corrupt: int = 0
    failed_packets: int = 0
    end: float = 0.0


def decode_packets(container: InputContainer, stream: VideoStream, tally: _Tally | None = None) -> Iterator[VideoFrame]:
    """Frames in the decoder's order; a packet that cannot be decoded is counted and passed over."""
    av = import_av()
    # Where the header has no frame count, the other streams' ends show whether the file was cut.
    packets: Iterator[Any] = container.demux() if tally is not None and not stream.frames else container.demux(stream)
    tally = _Tally() if tally is None else tally
    while True:
        try:
            packet = next(packets)
            if packet.pts is not None and packet.time_base is not None:
                tally.end = max(tally.end, float((packet.pts + (packet.duration or 0)) * packet.time_base))
            frames = packet.decode() if packet.stream.index == stream.index else []
        except StopIteration:
            return
        except av.error.EOFError:
            return
        except av.error.FFmpegError:
            tally.failed_packets += 1
            # A demuxer that fails does so for ever; only a decoder recovers.
            if tally.failed_packets > 1000:
                return
            continue
        yield from frames


def scan(path: str | os.PathLike[str], *, threads: int = 0) -> VideoScan:
    """Decode the file from end to end, keep no picture, and report what is there.

    "No exception" is not "good": a truncated AVI ends quietly and a damaged MP4 gives all its frames. So decoded frames
    are counted against the declared ones, `frame.is_corrupt` is read, and time stamps are taken from the frames.

    Errors: `UnreadableVideoError`, `EmptyVideoError`. Damage is not raised here: see `VideoScan.problem`.
    """
    tally = _Tally()
    with open_video(path, threads=threads) as (container, stream):
        width, height, rotation = 0, 0, 0
        for frame in decode_packets(container, stream, tally):
            if not tally.pts:
                width, height, rotation = _displayed(frame, stream, container.format.name)
            tally.pts.append(frame.pts)
            tally.corrupt += bool(frame.is_corrupt)
        codec = stream.codec_context.codec.name
        rate = stream.average_rate
        declared = stream.frames or None
        seekable = container.format.name not in _PAINTED_FORMATS
        # FFmpeg takes a GIF's frame count from what is there, so a cut one agrees with itself.
        ends_early = container.format.name == "gif" and not _ends_with(path, b";")
        declared_duration = _declared_duration(container, stream, tally.end)
        time_base = stream.time_base or Fraction(1, 25)
    if not tally.pts:
        stated = f" of {declared} declared" if declared else ""
        raise EmptyVideoError(f"{Path(path).name}: decoded 0{stated} frames")
    times, pts, in_order, note = _time_line(tally.pts, time_base, rate)
    return VideoScan(
        path=os.fspath(path), codec=codec, stored_width=width, stored_height=height, rotation=rotation,
        declared=declared, declared_duration=declared_duration, corrupt=tally.corrupt,
        failed_packets=tally.failed_packets, nominal_fps=float(rate) if rate else None, times=times, pts=pts,
        seekable=seekable and in_order, note=note, ends_early=ends_early,
    )  # fmt: skip


def _displayed(frame: VideoFrame, stream: VideoStream, container_format: str) -> tuple[int, int, int]:
    """Width and height with square pixels, and the counter-clockwise quarter turns that a player would apply."""
    aspect = stream.sample_aspect_ratio or Fraction(1)
    # GIF writers fill the aspect byte with anything, and no viewer reads it.
    trusted = container_format not in _PAINTED_FORMATS and Fraction(1, 4) <= aspect <= 4
    width = max(1, round(frame.width * aspect)) if trusted else frame.width
    return width, frame.height, round(frame.rotation / 90) * 90 % 360


def _declared_duration(container: InputContainer, stream: VideoStream, packets_end: float) -> float | None:
    """Seconds of video by the header, from the stream; else the container's if all streams end before it."""
    known = []
    if stream.frames and stream.average_rate:
        known.append(stream.frames / float(stream.average_rate))
    if stream.duration and stream.time_base:
        known.append(float(stream.duration * stream.time_base))
    if known:
        return max(known)
    if container.duration is None:
        return None
    total = container.duration / 1e6
    # Sound that outlasts the pictures is no damage: then some packet does reach the end.
    return total if packets_end < 0.98 * total else None


def _time_line(
    pts: list[int | None], time_base: Fraction, rate: Fraction | None
) -> tuple[np.ndarray, np.ndarray, bool, str]:
    """Seconds per frame from time stamps, repaired where they cannot be true; also whether pts identify frames."""
    uniform = np.arange(len(pts)) / float(rate or 25)
    if any(p is None for p in pts):
        return uniform, np.arange(len(pts)), False, "no time stamps; the header's frame rate is used"
    stamps = np.array(pts, dtype=np.int64)
    ordered = np.sort(stamps)
    if len(stamps) > 1 and np.count_nonzero(np.diff(ordered) == 0) > 0.1 * len(stamps):
        return uniform, stamps, False, "repeated time stamps; the header's frame rate is used"
    times = (ordered - ordered[0]) * float(time_base)
    if np.array_equal(ordered, stamps):
        return times, stamps, bool(np.all(np.diff(stamps) > 0)), ""
    # The decoder's order is that of display; the set of stamps is right and their assignment is not.
    return times, stamps, False, "time stamps out of order; frames keep the decoder's order"
