"""What a cache of latents tells about itself, and what training and sampling check of it."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from vdiff_fast.latents.buckets import Bucket

if TYPE_CHECKING:
    from vdiff_fast.codecs import Codec, TextEncoder
    from vdiff_fast.codecs.text import Padding

HEADER = "latents.json"
_VERSION = 1


class CacheError(ValueError):
    """A cache of latents that is missing, unfinished, or of another codec or text encoder."""


@dataclass(frozen=True)
class LatentInfo:
    """Codec and text encoder of a cache.

    Attributes:
        codec, text: the folders that they were loaded from.
        codec_fingerprint, text_fingerprint: of their weights.
        latent_channels, channels: of a latent and of the pixels.
        compression: frames, rows and columns of pixels for one latent.
        shift, scale: per channel, u = (z - shift) * scale is what a denoiser sees.
        context_dim, text_length: width and number of the text's tokens.
        buckets: shapes of the clips.
        fps: of the clips; None where each has its own.
        text_padding: see `TextEncoder.padding`.
    """

    codec: str
    codec_fingerprint: str
    text: str
    text_fingerprint: str
    latent_channels: int
    channels: int
    compression: tuple[int, int, int]
    shift: tuple[float, ...]
    scale: tuple[float, ...]
    context_dim: int
    text_length: int
    buckets: tuple[Bucket, ...]
    fps: float | None = None
    text_padding: Padding = "masked"
    version: int = _VERSION

    @classmethod
    def of(cls, codec: Codec, text: TextEncoder, buckets: tuple[Bucket, ...], fps: float | None = None) -> LatentInfo:
        """Of a codec and a text encoder.

        Raises:
            CodecError: a bucket that the codec cannot take.
        """
        for bucket in buckets:
            codec.latent_shape(*bucket)
        return cls(
            codec=_absolute(codec.folder), codec_fingerprint=codec.fingerprint, text=_absolute(text.folder),
            text_fingerprint=text.fingerprint, latent_channels=codec.latent_channels, channels=codec.channels,
            compression=codec.compression, shift=tuple(codec.shift.tolist()), scale=tuple(codec.scale.tolist()),
            context_dim=text.width, text_length=text.max_length, buckets=buckets, fps=fps,
            text_padding=text.padding,
        )  # fmt: skip

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {**asdict(self), "buckets": [list(bucket) for bucket in self.buckets]}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> LatentInfo:
        """The inverse of `to_dict`."""
        known = {field.name for field in fields(cls)}
        plain: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items() if k in known}
        plain["buckets"] = tuple(Bucket(*bucket) for bucket in values["buckets"])
        return cls(**plain)

    def normalise(self, z: Tensor) -> Tensor:
        """u = (z - shift) * scale of latents (B, c, t, h, w)."""
        shift, scale = (torch.tensor(v, device=z.device, dtype=z.dtype).view(-1, 1, 1, 1) for v in self._affine)
        return (z - shift) * scale

    @property
    def _affine(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        return self.shift, self.scale

    def latent_shape(self, bucket: Bucket) -> tuple[int, int, int]:
        """(t, h, w) of a bucket's latents."""
        time, *space = self.compression
        return 1 + (bucket.frames - 1) // time, bucket.height // space[0], bucket.width // space[1]


def _absolute(folder: Path | None) -> str:
    """Where a folder is found from any other; empty for what was made in memory."""
    return "" if folder is None else str(folder.resolve())


def is_cache(folder: str | os.PathLike[str]) -> bool:
    """Whether a folder is a cache of latents."""
    return (Path(folder) / HEADER).is_file()


def read_header(folder: Path) -> dict[str, Any]:
    """What `vdiff-fast cache` wrote first.

    Raises:
        CacheError: the folder is no cache, or one of another version.
    """
    try:
        header = json.loads((folder / HEADER).read_text())
    except (OSError, ValueError) as error:
        raise CacheError(f"{folder}: is no cache of latents ({error}); make one with vdiff-fast cache --codec") from (
            error
        )
    version = header.get("info", {}).get("version")
    if version != _VERSION:
        raise CacheError(f"{folder}: was written in version {version} of the format, this is {_VERSION}; cache it anew")
    return header


def check_encoders(info: LatentInfo, codec: Codec | None = None, text: TextEncoder | None = None) -> None:
    """Raise where a codec or a text encoder is not the one that the latents and embeddings were made with.

    Raises:
        CacheError: another codec, another text encoder, or one of another width or length.
    """
    if codec is not None and codec.fingerprint != info.codec_fingerprint:
        raise CacheError(
            f"{codec.folder}: another codec ({codec.latent_channels} latent channels) than the latents were made with "
            f"({info.codec}, {info.latent_channels} channels); give that one, or cache and train anew"
        )
    if text is not None and text.fingerprint != info.text_fingerprint:
        raise CacheError(
            f"{text.folder}: another text encoder (width {text.width}, {text.max_length} tokens) than the embeddings "
            f"were made with ({info.text}, width {info.context_dim}, {info.text_length} tokens); give that one, or "
            "cache and train anew"
        )
