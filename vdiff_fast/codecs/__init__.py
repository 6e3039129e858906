"""Autoencoders and text encoders of other libraries behind two small interfaces, from a local folder."""

from vdiff_fast.codecs.codec import Codec, CodecError, Moments
from vdiff_fast.codecs.kinds import CODECS, load_codec
from vdiff_fast.codecs.memory import limit_memory
from vdiff_fast.codecs.text import Encoded, TextEncoder, TextError, load_text

__all__ = [
    "CODECS",
    "Codec",
    "CodecError",
    "Encoded",
    "Moments",
    "TextEncoder",
    "TextError",
    "limit_memory",
    "load_codec",
    "load_text",
]
