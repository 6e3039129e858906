"""FFmpeg's containers through PyAV: opened, read packet by packet, with errors of this package."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vdiff_fast._files import printable
from vdiff_fast.data.errors import UnreadableVideoError, VideoError
from vdiff_fast.data.ffv1_slices import slices_are_whole

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.packet import Packet
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

# A file that begins inside a group of pictures has its first key frame soon; beyond this many packets there is none.
_EARLY_PACKETS = 600
# Pictures that belong to a file without being its video: covers, thumbnails, tiles of a larger picture.
_NOT_SHOWN = ("attached_pic", "timed_thumbnails", "dependent")
# Within so many packets of one that is marked as damaged the seam of two recordings shows.
_SEAM_PACKETS = 3
# 16384 x 16384: a damaged header may ask for more memory than there is.
_MAX_PIXELS = 1 << 28


def import_av() -> Any:
    """PyAV, or an ImportError that says how to get it."""
    try:
        import av
    except ImportError as error:
        raise ImportError("reading and writing videos needs PyAV: pip install 'vdiff-fast[video]'") from error
    return av


@contextmanager
def reading(path: str | os.PathLike[str], what: str = "not a video that FFmpeg can read") -> Iterator[None]:
    """Whatever FFmpeg or PyAV raise about a file inside becomes an `UnreadableVideoError` that names it.

    A damaged file makes them raise UnicodeDecodeError, ValueError, OverflowError and others: none of them may end the
    look at a whole folder.
    """
    try:
        yield
    except (VideoError, ImportError):
        raise
    except Exception as error:
        told = getattr(error, "strerror", None) or f"{type(error).__name__}: {error}"
        name = printable(Path(path).name)
        raise UnreadableVideoError(f"{name}: {what} ({told})") from error


@contextmanager
def open_video(path: str | os.PathLike[str], *, threads: int = 0) -> Iterator[tuple[InputContainer, VideoStream]]:
    """The container and its video stream, closed at the end. `threads` 0 lets FFmpeg choose.

    Errors: `FileNotFoundError`; `UnreadableVideoError` for an empty file, a text file, a file without video.
    """
    av = import_av()
    name = printable(Path(path).name)
    if os.path.getsize(path) == 0:
        raise UnreadableVideoError(f"{name}: the file is empty (0 bytes)")
    with reading(path):
        # "file:" because a name may hold a colon; text in other encodings than UTF-8 is no reason to stop; a playlist
        # under a video's name must not reach out; a name with "%03d" is a name.
        container = av.open(
            f"file:{os.fspath(path)}", metadata_errors="replace",
            options={"protocol_whitelist": "file", "pattern_type": "none", "max_pixels": str(_MAX_PIXELS)},
        )  # fmt: skip
    with container:
        with reading(path):
            stream = _shown_stream(container, name)
            stream.thread_type = "AUTO"
            stream.codec_context.thread_count = threads
            stream.codec_context.options = {"max_pixels": str(_MAX_PIXELS)}
        yield container, stream


def _shown_stream(container: InputContainer, name: str) -> VideoStream:
    """The stream that a player shows: FFmpeg's choice, but no cover beside the pictures that move."""
    # FFmpeg plays text files as ANSI art; nobody trains on that.
    if container.format.name == "tty":
        raise UnreadableVideoError(f"{name}: a text file, not a video")
    videos = [stream for stream in container.streams.video if stream.codec_context is not None]
    shown = [stream for stream in videos if not _is_beside(stream)]
    if not shown:
        what = "only a cover picture, no video" if videos else "no video stream that can be decoded"
        raise UnreadableVideoError(f"{name}: {what}")
    best = container.streams.best("video")
    if best not in shown or best.frames == 1:
        best = max(shown, key=lambda stream: (stream.frames != 1, stream is best))
    return best


def _is_beside(stream: VideoStream) -> bool:
    kinds = type(stream.disposition)
    return any(stream.disposition & kinds[kind] for kind in _NOT_SHOWN)


@dataclass
class Tally:
    """What reading has met so far. `end`: seconds at which the last packet of any stream ends.

    `hidden` counts packets whose pictures no player shows: those outside an edit list, and `early` ones, before the
    first key frame of a file that begins inside a group of pictures.
    """

    failed_packets: int = 0
    corrupt_packets: int = 0
    hidden: int = 0
    early: int = 0
    end: float = 0.0


def decode_packets(container: InputContainer, stream: VideoStream, tally: Tally | None = None) -> Iterator[VideoFrame]:
    """The frames that a player shows, in its order; a packet that cannot be decoded is counted and passed over.

    Packets before the first key frame are left out: their pictures change ones that are not there.
    """
    # Where the header has no frame count, the other streams' ends show whether the file was cut.
    everything = tally is not None and not stream.frames
    tally = Tally() if tally is None else tally
    seen_key = False
    path = container.name.removeprefix("file:")
    packets = _packets(container, None if everything else stream, tally, path)
    for packet in _from_key_frame(packets, stream, tally):
        for frame in _decode(packet, tally, path):
            seen_key = seen_key or bool(frame.key_frame)
            if frame.is_corrupt and not seen_key:
                # Shown before the first key frame and made from pictures before the file's start.
                tally.early += 1
                tally.hidden += 1
                continue
            yield frame


def _packets(container: InputContainer, stream: VideoStream | None, tally: Tally, path: str) -> Iterator[Packet]:
    av = import_av()
    packets: Iterator[Packet] = container.demux() if stream is None else container.demux(stream)
    while True:
        with reading(path):
            try:
                packet = next(packets)
            except (StopIteration, av.error.EOFError):
                return
            except av.error.FFmpegError:
                # A demuxer that fails does so for ever.
                tally.failed_packets += 1
                return
            if packet.pts is not None and packet.time_base is not None:
                tally.end = max(tally.end, float((packet.pts + (packet.duration or 0)) * packet.time_base))
        yield packet


def _from_key_frame(packets: Iterator[Packet], stream: VideoStream, tally: Tally) -> Iterator[Packet]:
    """The stream's packets from the first key frame on, or all of them where none is marked."""
    early: list[Packet] | None = []
    doubts = _Doubts(tally, stream.codec_context.name)
    for packet in packets:
        if packet.stream.index != stream.index:
            continue
        tally.hidden += bool(packet.is_discard)
        if early is not None:
            if packet.is_keyframe:
                tally.early += len(early)
                tally.hidden += sum(not waiting.is_discard for waiting in early)
                early = None
            elif packet.size and len(early) < _EARLY_PACKETS:
                early.append(packet)
                continue
            else:
                yield from early
                early = None
        doubts.see(packet)
        yield packet


class _Doubts:
    """Counts damaged packets that a decoder need not notice.

    FFmpeg marks a packet of a transport stream, which numbers its parts, where one is missing. At the seam of two
    recordings in one file it marks one, too; there a key frame follows, of another time. FFV1's checksums it only logs.
    """

    def __init__(self, tally: Tally, codec: str) -> None:
        self.tally, self.codec = tally, codec
        self.marked: Packet | None = None
        self.since = 0
        self.whole = self.failed = 0

    def see(self, packet: Packet) -> None:
        if self.codec == "ffv1" and packet.size:
            self._check(packet)
        self.since += 1
        if self.marked is not None:
            if packet.is_keyframe and _clock_jumps(self.marked, packet):
                self.marked = None
            elif self.since >= _SEAM_PACKETS or packet.is_corrupt or not packet.size:
                self.tally.corrupt_packets += 1
                self.marked = None
        if packet.is_corrupt and packet.size:
            self.marked, self.since = packet, 0

    def _check(self, packet: Packet) -> None:
        whole = slices_are_whole(bytes(packet))
        self.whole += whole
        self.failed += not whole
        # A stream without checksums fails with every packet.
        if self.whole:
            self.tally.corrupt_packets += self.failed
            self.failed = 0


def _clock_jumps(before: Packet, after: Packet) -> bool:
    if before.dts is None or after.dts is None or after.time_base is None:
        return False
    return not 0.0 <= float((after.dts - before.dts) * after.time_base) <= 1.0


def _decode(packet: Packet, tally: Tally, path: str) -> list[VideoFrame]:
    av = import_av()
    with reading(path):
        try:
            return packet.decode()
        except av.error.EOFError:
            return []
        except av.error.FFmpegError:
            tally.failed_packets += 1
            return []
