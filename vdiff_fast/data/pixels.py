"""One rule for the pixels of videos and pictures: upright, full range, 8 bits, nothing transparent, standard range."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from vdiff_fast.data.container import import_av, reading
from vdiff_fast.data.tone_map import TRANSFERS, to_standard_range

if TYPE_CHECKING:
    from av.filter import Graph
    from av.filter.context import FilterContext
    from av.video.frame import VideoFrame

# libswscale's flags.
SWS_BICUBIC, SWS_ACCURATE_RND, _SWS_FULL_CHROMA = 0x4, 0x40000, 0x2000
# swscale's default rounding darkens YUV video by one level of 255 on average; with accurate rounding and full chroma
# interpolation it does not, at 1.6 times the cost. As numbers, since PyAV names them only from version 18 on.
_ACCURATE = SWS_BICUBIC | SWS_ACCURATE_RND | _SWS_FULL_CHROMA

# The eight ways in which EXIF turns pictures, by number: where the picture's right and down point when it is shown,
# (a, b) and (c, d) of the display matrix [a b u; c d v; x y w].
_DIRECTIONS = {
    1: (1, 0, 0, 1), 2: (-1, 0, 0, 1), 3: (-1, 0, 0, -1), 4: (1, 0, 0, -1),
    5: (0, 1, 1, 0), 6: (0, 1, -1, 0), 7: (0, -1, -1, 0), 8: (0, -1, 1, 0),
}  # fmt: skip
# Counter-clockwise quarter turns, made after the mirror where there is one (2, 4, 5, 7).
_ROTATIONS = {1: 0, 2: 0, 3: 180, 4: 180, 5: 90, 6: 270, 7: 270, 8: 90}


def rotation(orientation: int) -> int:
    """Degrees counter-clockwise by which an EXIF orientation turns what is stored."""
    return _ROTATIONS[orientation]


def is_transposed(orientation: int) -> bool:
    """Whether width and height change places."""
    return orientation >= 5


def is_mirrored(orientation: int) -> bool:
    """Whether left and right change places, apart from a turn."""
    return orientation in (2, 4, 5, 7)


def frame_orientation(frame: VideoFrame) -> int:
    """How a frame is turned when shown, as an EXIF orientation; containers, codecs and EXIF all set a display matrix.

    Of the eight ways it is the one nearest to the matrix; 1 (as stored) without a matrix and for one of zeros.
    """
    matrix = _display_matrix(frame)
    if matrix is None:
        return 1
    # [a b u; c d v; x y w], row by row, in fixed point.
    a, b, c, d = (float(matrix[i]) for i in (0, 1, 3, 4))
    likeness = {n: a * way[0] + b * way[1] + c * way[2] + d * way[3] for n, way in _DIRECTIONS.items()}
    best = max(likeness, key=lambda n: likeness[n])
    return best if likeness[best] > 0 else 1


def _display_matrix(frame: VideoFrame) -> np.ndarray | None:
    # PyAV cannot list side data of kinds that it does not know (EXIF, in version 18): those are taken off first.
    for _ in range(8):
        try:
            data = frame.side_data.get("DISPLAYMATRIX")
        except ValueError as error:
            unknown = re.match(r"(\d+) is not a valid", str(error))
            if unknown is None:
                raise
            frame = _without_side_data(frame, int(unknown[1]))
        else:
            return None if data is None else np.frombuffer(bytes(cast(Any, data)), dtype=np.int32)
    return None


def _without_side_data(frame: VideoFrame, kind: int) -> VideoFrame:
    graph = filter_graph()
    source, sink = add_source(graph, frame), graph.add("buffersink")
    graph.link_nodes(source, graph.add("sidedata", mode="delete", type=str(kind)), sink)
    graph.configure()
    graph.vpush(frame)
    return graph.vpull()


def filter_graph() -> Graph:
    """An empty filter graph without threads of its own, which a loader's worker could not end."""
    graph = import_av().filter.Graph()
    graph.threads = 1
    return graph


def add_source(graph: Graph, frame: VideoFrame) -> FilterContext:
    """A filter graph's source for frames like this one."""
    return graph.add(
        "buffer", video_size=f"{frame.width}x{frame.height}", pix_fmt=frame.format.name, pixel_aspect="1/1",
        time_base=str(frame.time_base or "1/25"), colorspace=str(int(frame.colorspace)),
        range=str(int(frame.color_range)),
    )  # fmt: skip


def turn(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Show (H, W, ...) as its EXIF orientation says; a view."""
    if orientation in (2, 7):
        pixels = pixels[:, ::-1]
    elif orientation in (4, 5):
        pixels = pixels[::-1]
    return np.rot90(pixels, {3: 2, 5: 3, 6: 3, 7: 3, 8: 1}.get(orientation, 0))


def frame_to_rgb(frame: VideoFrame, width: int, height: int, orientation: int = 1, *, name: str = "") -> np.ndarray:
    """One frame as uint8 (H, W, 3): upright, with square pixels, transparency over black, HDR as a screen shows it.

    `width` and `height` are the displayed size before the turn; a frame of another size (the stream changed) is scaled.
    Range and matrix are the frame's own; where it says nothing, those of its pixel format and BT.601, as in the ffmpeg
    program.

    Errors: `UnreadableVideoError` for a colour space that FFmpeg cannot convert.
    """
    transfer = TRANSFERS.get(int(frame.color_trc), "")
    alpha = frame.format.name == "pal8" or any(component.is_alpha for component in frame.format.components)
    target = {("", False): "rgb24", ("", True): "rgba"}.get((transfer, alpha), "rgba64le" if alpha else "rgb48le")
    with reading(name, f"FFmpeg cannot convert its pixels, {frame.format.name} with matrix {int(frame.colorspace)}"):
        # One thread: swscale's own wait for ever in a loader's worker, if a frame that was read before the fork is
        # freed there.
        converted = frame.reformat(width=width, height=height, format=target, interpolation=_ACCURATE, threads=1)
        pixels: np.ndarray = converted.to_ndarray()
    colours = to_standard_range(pixels[..., :3], transfer) if transfer else pixels[..., :3]
    if alpha:
        full = 65535 if transfer else 255
        opacity = pixels[..., 3:].astype(np.uint32)
        colours = ((colours * opacity + full // 2) // full).astype(np.uint8)
    return np.ascontiguousarray(turn(colours, orientation))
