"""The interface of a video codec: pixels to the moments of latents, and latents to pixels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vdiff_fast.codecs.fingerprint import fingerprint


class CodecError(ValueError):
    """A folder that holds no codec, or a clip that a codec cannot take; the message says what would work."""


class Moments(NamedTuple):
    """Mean and logarithm of the variance of q(z | x), (B, c, t, h, w) each, as the autoencoder gives them."""

    mean: Tensor
    logvar: Tensor


@dataclass(frozen=True)
class Kind:
    """How one class of autoencoder is called; see `vdiff_fast.codecs.kinds`.

    Attributes:
        name: of the class in diffusers.
        compression: (time, height, width) from the module.
        per_frame: whether it sees one frame at a time, so that clips are cut between frames without an error.
        decode: (module, z) -> video, for those that are not called as `module.decode(z).sample`.
        frames_in_flight: frames that are computed at once, for the estimate of memory.
        tile: (module, height, width) sets diffusers' own tiling with blending; None where it has none.
        width: channels of the widest activation at full resolution, for the estimate of memory.
        cut_frames: (module) lets it decode chunks of frames with blending, where it does not do so by itself.
        group: latents after the first that only come back to as many frames together, as CogVideoX's two do.
    """

    name: str
    compression: Callable[[Any], tuple[int, int, int]]
    width: Callable[[Any], int]
    per_frame: bool = False
    decode: Callable[[Any, Tensor], Tensor] | None = None
    frames_in_flight: int = 16
    tile: Callable[[Any, int, int], None] | None = None
    cut_frames: Callable[[Any], None] | None = None
    group: int = 1


@dataclass
class Codec:
    """An autoencoder of diffusers as a codec: z ~ N(mean(x), exp(logvar(x))), x' = decode(z).

    A denoiser is trained on u = (z - shift) * scale, per channel: `normalise` and `denormalise`.

    Attributes:
        module: the autoencoder, in evaluation mode.
        kind: how it is called.
        folder: where it was loaded from.
        chunk_frames: frames that an autoencoder of single frames is given at once.
    """

    module: Any
    kind: Kind
    folder: Path | None = None
    chunk_frames: int = 8
    _tiles: tuple[int, int] | None = field(default=None, init=False)

    @property
    def latent_channels(self) -> int:
        config = self.module.config
        return int(config["latent_channels"] if "latent_channels" in config else config["z_dim"])

    @property
    def channels(self) -> int:
        """Channels of the pixels."""
        return int(self.module.config["in_channels"])

    @property
    def compression(self) -> tuple[int, int, int]:
        """Frames, rows and columns of pixels for one latent."""
        return self.kind.compression(self.module)

    @property
    def device(self) -> torch.device:
        return next(self.module.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        return next(self.module.parameters()).dtype

    @cached_property
    def fingerprint(self) -> str:
        """Of the configuration and the weights."""
        return fingerprint(dict(self.module.config), self.module.state_dict())

    @cached_property
    def shift(self) -> Tensor:
        """(c,) float32: the latents' mean."""
        value = self._statistic("latents_mean")
        return torch.full((self.latent_channels,), self._number("shift_factor", 0.0)) if value is None else value

    @cached_property
    def scale(self) -> Tensor:
        """(c,) float32: one over the latents' deviation."""
        deviation = self._statistic("latents_std")
        scale = torch.full((self.latent_channels,), self._number("scaling_factor", 1.0))
        return scale if deviation is None else scale / deviation

    def _number(self, name: str, default: float) -> float:
        value = self.module.config.get(name)
        return default if value is None else float(value)

    def _statistic(self, name: str) -> Tensor | None:
        """A vector of the configuration, or a buffer of the module, as LTX has it."""
        value = self.module.config[name] if name in self.module.config else getattr(self.module, name, None)
        return None if value is None else torch.as_tensor(value, dtype=torch.float32).detach().cpu()

    def normalise(self, z: Tensor) -> Tensor:
        """u = (z - shift) * scale."""
        return (z - _per_channel(self.shift, z)) * _per_channel(self.scale, z)

    def denormalise(self, u: Tensor) -> Tensor:
        """z = u / scale + shift."""
        return u / _per_channel(self.scale, u) + _per_channel(self.shift, u)

    def latent_shape(self, frames: int, height: int, width: int) -> tuple[int, int, int]:
        """(t, h, w) of the latents of a clip.

        Raises:
            CodecError: the codec cannot take this clip; the message names the nearest lengths or sizes.
        """
        time, *space = self.compression
        step = time * self.kind.group
        if frames < 1 or (frames - 1) % step:
            below = 1 + max(0, frames - 1) // step * step
            raise CodecError(
                f"{frames} frames: {self.kind.name} takes 1 + {step} k frames; use {below} or {below + step}"
            )
        for name, size, factor in (("height", height, space[0]), ("width", width, space[1])):
            if size < factor or size % factor:
                lower, upper = size // factor * factor, -(-max(size, 1) // factor) * factor
                fitting = f"{lower} or {upper}" if lower else f"{upper}"
                raise CodecError(
                    f"frame {height}x{width}: {self.kind.name} takes a {name} that is a multiple of {factor}; "
                    f"use {fitting}"
                )
        return 1 + (frames - 1) // time, height // space[0], width // space[1]

    def pixel_shape(self, t: int, h: int, w: int) -> tuple[int, int, int]:
        """(frames, height, width) of the clip of latents (t, h, w)."""
        time, *space = self.compression
        return 1 + (t - 1) * time, h * space[0], w * space[1]

    @torch.no_grad()
    def encode(self, video: Tensor) -> Moments:
        """The moments of (B, C, T, H, W) in [-1, 1]; float32.

        Raises:
            CodecError: another number of channels, or a clip that the codec cannot take.
        """
        if video.dim() != 5 or video.shape[1] != self.channels:
            raise CodecError(f"{self.kind.name} encodes videos (B, {self.channels}, T, H, W), got {tuple(video.shape)}")
        self.latent_shape(*video.shape[2:])
        video = video.to(self.device, self.dtype)
        if not self.kind.per_frame:
            return _moments(self.module.encode(video).latent_dist)
        parts = [_moments(self.module.encode(_images(part)).latent_dist) for part in video.split(self.chunk_frames, 2)]
        return Moments(*(_joined(list(column), len(video)) for column in zip(*parts)))

    @torch.no_grad()
    def decode(self, z: Tensor) -> Tensor:
        """The video (B, C, T, H, W), about [-1, 1], float32, of latents as `encode` gives them.

        Raises:
            CodecError: another number of latent channels.
        """
        if z.dim() != 5 or z.shape[1] != self.latent_channels:
            raise CodecError(
                f"{self.kind.name} decodes latents (B, {self.latent_channels}, t, h, w), got {tuple(z.shape)}; a model "
                f"for it has {self.latent_channels} channels"
            )
        z = z.to(self.device, self.dtype)
        if not self.kind.per_frame:
            return self._call(z).float()
        return _joined([self._call(part).float() for part in z.split(self.chunk_frames, 2)], len(z))

    def _call(self, z: Tensor) -> Tensor:
        if self.kind.decode is not None:
            return self.kind.decode(self.module, z)
        return self.module.decode(_images(z) if self.kind.per_frame else z).sample

    def tile(self, height: int, width: int) -> None:
        """Code in tiles of this many pixels, overlapping by a quarter and blended, as diffusers does it.

        Raises:
            CodecError: the class has no tiling, or tiles that are no multiples of its compression.
        """
        if self.kind.tile is None:
            raise CodecError(f"{self.kind.name} has no tiling in diffusers; give smaller frames or fewer at once")
        self.latent_shape(1, height, width)
        self.kind.tile(self.module, height, width)
        self._tiles = (height, width)


def _per_channel(values: Tensor, like: Tensor) -> Tensor:
    return values.to(like.device, like.dtype).view(1, -1, 1, 1, 1)


def _images(video: Tensor) -> Tensor:
    """(B, C, T, H, W) -> (B * T, C, H, W)."""
    return video.transpose(1, 2).flatten(0, 1)


def _joined(parts: list[Tensor], batch: int) -> Tensor:
    """Frames (B * n, C, H, W), or videos, joined over time to (B, C, T, H, W)."""
    videos = [part if part.dim() == 5 else part.unflatten(0, (batch, -1)).transpose(1, 2) for part in parts]
    return videos[0] if len(videos) == 1 else torch.cat(videos, dim=2)


def _moments(distribution: Any) -> Moments:
    return Moments(distribution.mean.float(), distribution.logvar.float())
