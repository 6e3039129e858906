"""How large tiles and chunks may be for a bound on memory."""

from __future__ import annotations

import math

from vdiff_fast.codecs.codec import Codec, CodecError

# Activations at full resolution that live at once in a residual block: its input, the norm's output, the convolution's
# output and its workspace.
_LIVE = 4


def bytes_of(codec: Codec, height: int, width: int, frames: int) -> int:
    """An estimate of what one call needs at its widest place, besides weights, inputs and outputs."""
    return _LIVE * codec.kind.width(codec.module) * height * width * frames * codec.dtype.itemsize


def limit_memory(codec: Codec, limit: int, height: int, width: int) -> tuple[int, int, int]:
    """Set chunks and tiles so that a call needs about `limit` bytes at most; returns (frames, height, width) of one.

    Frames are cut first where the codec sees single frames, since that has no seams; then tiles are halved.

    Raises:
        CodecError: not even the smallest tile fits; the message says how much does.
    """
    frames = codec.kind.frames_in_flight
    if codec.kind.per_frame:
        per_frame = bytes_of(codec, height, width, 1)
        frames = codec.chunk_frames = max(1, min(codec.chunk_frames, limit // per_frame))
    elif codec.kind.cut_frames is not None:
        codec.kind.cut_frames(codec.module)
    factor = codec.compression[1]
    smallest = 8 * factor
    tile_height, tile_width = height, width
    while bytes_of(codec, tile_height, tile_width, frames) > limit:
        if max(tile_height, tile_width) <= smallest or codec.kind.tile is None:
            needed = math.ceil(bytes_of(codec, min(height, smallest), min(width, smallest), frames) / 2**20)
            if codec.kind.tile is None:
                needed = math.ceil(bytes_of(codec, height, width, frames) / 2**20)
            raise CodecError(
                f"{codec.kind.name} in {limit / 2**20:.0f} MiB: its smallest call needs about {needed} MiB; give that"
            )
        if tile_height >= tile_width:
            tile_height = max(smallest, tile_height // 2 // factor * factor)
        else:
            tile_width = max(smallest, tile_width // 2 // factor * factor)
    if (tile_height, tile_width) != (height, width):
        codec.tile(tile_height, tile_width)
    return frames, tile_height, tile_width
