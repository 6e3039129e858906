"""Whether a GIF's blocks follow each other to its end mark: FFmpeg reads past what is broken and says nothing.

The format has neither a count of frames nor a checksum; its structure is all that can be checked (GIF89a, appendix B).
"""

from __future__ import annotations

import os
from pathlib import Path

_EXTENSION, _IMAGE, _TRAILER = 0x21, 0x2C, 0x3B
_HEADER_BYTES, _SCREEN_BYTES, _IMAGE_BYTES = 6, 7, 10


def gif_problem(path: str | os.PathLike[str]) -> str:
    """What is wrong with the structure of a GIF file, "" where nothing is."""
    content = Path(path).read_bytes()
    at = _HEADER_BYTES + _SCREEN_BYTES
    if len(content) < at:
        return "the file ends in its header"
    at += _table_bytes(content[_HEADER_BYTES + 4])
    while at < len(content):
        kind = content[at]
        if kind == _TRAILER:
            # Writers pad their files; anything else behind the mark was meant to be shown.
            rest = content[at + 1 :].strip(b"\0\r\n")
            return "" if not rest else f"{len(rest)} bytes follow its end mark"
        if kind == _EXTENSION:
            at = _after_data(content, at + 2)
        elif kind == _IMAGE and at + _IMAGE_BYTES < len(content):
            # Descriptor, a colour table of its own, the size of the first code, data.
            at = _after_data(content, at + _IMAGE_BYTES + _table_bytes(content[at + _IMAGE_BYTES - 1]) + 1)
        else:
            return f"no block begins at byte {at}"
    return "the file ends without its end mark"


def _table_bytes(flags: int) -> int:
    """Bytes of the colour table that these flags announce."""
    return 3 << ((flags & 7) + 1) if flags & 0x80 else 0


def _after_data(content: bytes, at: int) -> int:
    """Past sub-blocks of a length and so many bytes, which a length of zero ends."""
    while at < len(content) and content[at]:
        at += 1 + content[at]
    return at + 1
