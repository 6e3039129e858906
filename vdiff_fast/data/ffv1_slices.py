"""Whether the slices of an FFV1 packet are whole: FFmpeg fills damaged ones with what lies in memory, and only logs it.

RFC 9043, section 4.8: a slice ends with its size in 3 bytes, an error status in 1 and a CRC-32 in 4, so that the slices
of a packet are found from its end, and the CRC over a whole slice is 0.
"""

from __future__ import annotations

import zlib

_FOOTER_BYTES = 8
_MIRRORED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))


def slices_are_whole(packet: bytes) -> bool:
    """Whether the packet is nothing but slices with right checksums; False for streams that have none."""
    end = len(packet)
    while end > _FOOTER_BYTES:
        size = int.from_bytes(packet[end - _FOOTER_BYTES : end - _FOOTER_BYTES + 3], "big") + _FOOTER_BYTES
        if size > end or _crc(packet[end - size : end]):
            return False
        end -= size
    return end == 0


def _crc(content: bytes) -> int:
    """CRC-32 of polynomial 0x04C11DB7 from the highest bit on, from 0 and not inverted, mirrored (0 stays 0)."""
    return zlib.crc32(content.translate(_MIRRORED), 0xFFFFFFFF) ^ 0xFFFFFFFF
