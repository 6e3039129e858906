"""Whole pictures from interlaced ones by FFmpeg's `bwdif`, one for each frame, from its and its neighbours' fields."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from vdiff_fast.data.container import import_av
from vdiff_fast.data.pixels import add_source, filter_graph

if TYPE_CHECKING:
    from av.video.frame import VideoFrame

# bwdif refuses smaller pictures.
_SMALLEST_SIDE = 4


def deinterlaced(frames: Iterator[tuple[int, VideoFrame]]) -> Iterator[tuple[int, VideoFrame]]:
    """(number, frame) with interlaced frames made whole; frames that are not marked as interlaced pass unchanged.

    A frame depends on those beside it alone, and the first lacks the one before: whoever starts in the middle of a
    video starts a frame early.
    """
    filtering: _Filter | None = None
    for number, frame in frames:
        shape = (frame.width, frame.height, frame.format.name)
        if filtering is not None and filtering.shape != shape:
            yield from filtering.finish()
            filtering = None
        if min(frame.width, frame.height) < _SMALLEST_SIDE:
            yield number, frame
            continue
        filtering = filtering or _Filter(frame)
        yield from filtering.push(number, frame)
    if filtering is not None:
        yield from filtering.finish()


class _Filter:
    """The filter graph for frames of one size and format; what comes out is one frame behind."""

    def __init__(self, frame: VideoFrame) -> None:
        self.shape = (frame.width, frame.height, frame.format.name)
        graph = filter_graph()
        source, sink = add_source(graph, frame), graph.add("buffersink")
        graph.link_nodes(source, graph.add("bwdif", mode="send_frame", deint="interlaced"), sink)
        graph.configure()
        self.graph: Any = graph
        self.numbers: deque[int] = deque()

    def push(self, number: int, frame: VideoFrame) -> Iterator[tuple[int, VideoFrame]]:
        # The filter asks for stamps that increase, which a file's need not do.
        self.numbers.append(number)
        frame.pts = number
        self.graph.vpush(frame)
        return self._pull()

    def finish(self) -> Iterator[tuple[int, VideoFrame]]:
        self.graph.vpush(None)
        return self._pull()

    def _pull(self) -> Iterator[tuple[int, VideoFrame]]:
        av = import_av()
        while self.numbers:
            try:
                frame = self.graph.vpull()
            except (av.error.BlockingIOError, av.error.EOFError):
                return
            yield self.numbers.popleft(), frame
