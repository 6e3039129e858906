"""Write a cache: every clip through the codec and every caption through the text encoder, once."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vdiff_fast import data
from vdiff_fast._files import save_safetensors, write_text
from vdiff_fast.codecs import Codec, TextEncoder
from vdiff_fast.data.cache import training_size
from vdiff_fast.data.dataset import SkipPolicy
from vdiff_fast.data.decode import read_frames
from vdiff_fast.data.draw import Draw
from vdiff_fast.data.scan import DEFAULT_TOLERANCE, Tolerance, VideoScan, scan
from vdiff_fast.data.transforms import Fit, choose_placement, place, resize_frame, to_unit_range
from vdiff_fast.latents.buckets import Bucket, BucketError, choose_bucket
from vdiff_fast.latents.dataset import METADATA, NULL, read_shard, shard_path
from vdiff_fast.latents.info import HEADER, CacheError, LatentInfo, read_header

Progress = Callable[[Iterator[Any], int], Iterator[Any]]


@dataclass(frozen=True)
class CacheOptions:
    """How clips are read and kept.

    Attributes:
        buckets: shapes of clips; each video takes the one that `choose_bucket` gives.
        fps: rate that videos are resampled to; None keeps each one's own.
        fit: "cover", "contain" or "stretch", as in `ClipSpec`.
        shard_clips: clips of a shard, the unit in which a killed run goes on.
        batch: clips of one shape that are encoded at once.
        skip_limit: share of bad clips that stops.
        tolerance: what a file may lack, see `Tolerance`.
    """

    buckets: tuple[Bucket, ...]
    fps: float | None = None
    fit: Fit = "cover"
    shard_clips: int = 64
    batch: int = 1
    skip_limit: float = 0.05
    tolerance: Tolerance = DEFAULT_TOLERANCE


@dataclass(frozen=True)
class CacheReport:
    """What a call of `write_cache` did, over the shards of this rank."""

    clips: int
    new: int
    skipped: tuple[str, ...]
    summary: str


def write_cache(
    folder: Path, captions: Mapping[Path, str], root: Path, codec: Codec, text: TextEncoder, options: CacheOptions, *,
    rank: int = 0, world_size: int = 1, progress: Progress | None = None,
) -> CacheReport:  # fmt: skip
    """Latents' moments and captions' embeddings of every clip, in shards that are whole or absent.

    A call goes on where an earlier one stopped; the result is the same to the bit, also for several ranks, of which
    each writes every `world_size`-th shard.

    Args:
        folder: where the cache goes.
        captions: the clips and their captions.
        root: names of clips are kept relative to this folder.
        codec, text: as loaded.
        options: see `CacheOptions`.
        rank, world_size: which part of the shards is this call's.
        progress: wraps the loop over clips.

    Raises:
        CacheError: the folder holds a cache of other clips, captions, options, codec or text encoder.
        CodecError: a bucket that the codec cannot take.
        TextError: a caption that is too long.
        TooManyBadVideosError: more clips are bad than the limit allows.
    """
    info = LatentInfo.of(codec, text, options.buckets, options.fps)
    videos = list(captions)
    _begin(folder, _header(info, captions, root, options), text)
    shards = range(rank, -(-len(videos) // options.shard_clips), world_size)
    policy = SkipPolicy(len(videos), options.skip_limit)
    skipped, clips, new = [], 0, 0
    work = _Work(codec, text, options, root)
    todo = []
    for number in shards:
        if shard_path(folder, number).is_file():
            done = read_shard(shard_path(folder, number))
            skipped += done["skipped"]
            clips += len(done["items"])
        else:
            todo.append(number)
    total = sum(len(_part(videos, number, options.shard_clips)) for number in todo)
    count = (lambda items, n: items) if progress is None else progress
    steps = count(_clips(videos, todo, options.shard_clips), total)
    for number in todo:
        part = _part(videos, number, options.shard_clips)
        read = [work.read(video, next(steps)) for video in part]
        failed = [clip for clip in read if isinstance(clip, str)]
        skipped += failed
        policy.enforce(skipped)
        kept = [clip for clip in read if isinstance(clip, _Clip)]
        work.write(shard_path(folder, number), kept, [captions[clip.path] for clip in kept], failed)
        clips, new = clips + len(kept), new + len(kept)
    next(steps, None)  # lets a progress bar end
    return CacheReport(clips, new, tuple(skipped), policy.summary(len(skipped)))


def _part(videos: Sequence[Path], number: int, size: int) -> Sequence[Path]:
    return videos[number * size : (number + 1) * size]


def _clips(videos: Sequence[Path], shards: Sequence[int], size: int) -> Iterator[None]:
    for number in shards:
        for _ in _part(videos, number, size):
            yield None


def _header(info: LatentInfo, captions: Mapping[Path, str], root: Path, options: CacheOptions) -> dict[str, Any]:
    """Everything that the shards depend on."""
    clips = [[os.path.relpath(video, root), caption] for video, caption in captions.items()]
    tolerance = [options.tolerance.max_missing, options.tolerance.max_corrupt]
    return {
        "info": info.to_dict(),
        "shards": -(-len(clips) // options.shard_clips),
        "clips": len(clips),
        "captions": hashlib.sha256(json.dumps(clips).encode()).hexdigest()[:32],
        "options": {"fit": options.fit, "shard_clips": options.shard_clips, "tolerance": tolerance},
    }


def _begin(folder: Path, header: dict[str, Any], text: TextEncoder) -> None:
    """Write the header and the null prompt, or compare with those that are there."""
    if (folder / HEADER).is_file():
        differing = _differences(read_header(folder), json.loads(json.dumps(header)))
        if differing:
            raise CacheError(
                f"{folder} holds a cache that was made otherwise ({'; '.join(differing)}); restore these, or give "
                "another --cache-dir"
            )
    else:
        context, mask = text.encode([""])
        save_safetensors(folder / NULL, {"context": context[0][mask[0]].cpu().contiguous()})
        write_text(folder / HEADER, json.dumps(header, indent=1) + "\n")


def _differences(saved: dict[str, Any], now: dict[str, Any]) -> list[str]:
    pairs = [(key, saved.get(key), value) for key, value in now.items() if key != "info"]
    # The folders may have moved: fingerprints say whether the weights are the same.
    pairs += [(k, saved["info"].get(k), v) for k, v in now["info"].items() if k not in ("codec", "text")]
    return [f"{key}: {before} saved, {after} now" for key, before, after in pairs if before != after]


@dataclass(frozen=True)
class _Clip:
    path: Path
    pixels: Tensor
    fps: float
    bucket: Bucket
    digest: str


@dataclass(frozen=True)
class _Work:
    """Reading and writing the clips of a shard."""

    codec: Codec
    text: TextEncoder
    options: CacheOptions
    root: Path

    def read(self, path: Path, _step: None) -> _Clip | str:
        """The middle clip of a file, or why there is none."""
        try:
            video = scan(path, threads=1)
            problem = video.problem(self.options.tolerance)
            if problem is not None:
                return str(problem)
            grid = video.grid(self.options.fps)
            bucket = choose_bucket(self.options.buckets, len(grid), video.height, video.width)
            frames = self._frames(video, grid, bucket)
            digest = hashlib.sha256(path.read_bytes()).hexdigest()[:32]
            return _Clip(path, frames, self.options.fps or video.fps, bucket, digest)
        except BucketError as error:
            return f"{path.name}: {error}"
        except (data.VideoError, OSError) as error:
            return str(error)

    def _frames(self, video: VideoScan, grid: np.ndarray, bucket: Bucket) -> Tensor:
        """uint8 (C, T, H, W)."""
        spec = data.ClipSpec(
            bucket.frames, (bucket.height, bucket.width), channels=self.codec.channels, fit=self.options.fit
        )
        start = (len(grid) - bucket.frames) // 2
        size = training_size(video, spec)
        frames = read_frames(
            video, grid[spec.window(start)], convert=lambda frame: resize_frame(frame, size, spec.channels),
            tolerance=self.options.tolerance,
        )  # fmt: skip
        # Without random choices in the spec, the draw decides nothing.
        placement = choose_placement(Draw(0, 0, 0), size, spec)
        return place(torch.from_numpy(frames).permute(3, 0, 1, 2), spec.size, placement)

    def write(self, path: Path, clips: list[_Clip], captions: list[str], skipped: list[str]) -> None:
        tensors: dict[str, Tensor] = {}
        for at, (mean, logvar) in self._moments(clips):
            tensors[f"{at}.mean"], tensors[f"{at}.logvar"] = mean, logvar
        for at, context in enumerate(self._contexts(captions)):
            tensors[f"{at}.context"] = context
        items = [
            {
                "caption": caption, "file": os.path.relpath(clip.path, self.root), "fps": clip.fps,
                "bucket": list(clip.bucket), "hash": clip.digest,
            }
            for clip, caption in zip(clips, captions)
        ]  # fmt: skip
        content = json.dumps({"items": items, "skipped": skipped})
        if not tensors:  # a shard whose clips are all bad is a file, too
            tensors["empty"] = torch.zeros(1)
        save_safetensors(path, tensors, {METADATA: content})

    def _moments(self, clips: list[_Clip]) -> Iterator[tuple[int, tuple[Tensor, Tensor]]]:
        for bucket in dict.fromkeys(clip.bucket for clip in clips):
            places = [at for at, clip in enumerate(clips) if clip.bucket == bucket]
            for first in range(0, len(places), self.options.batch):
                chosen = places[first : first + self.options.batch]
                pixels = torch.stack([clips[at].pixels for at in chosen])
                mean, logvar = self.codec.encode(to_unit_range(pixels))
                for row, at in enumerate(chosen):
                    yield at, (mean[row].cpu().contiguous(), logvar[row].cpu().contiguous())

    def _contexts(self, captions: list[str]) -> list[Tensor]:
        """Embeddings (n, D) without their padding; captions that come again are encoded once."""
        made: dict[str, Tensor] = {}
        for caption in dict.fromkeys(captions):
            # One at a time, so that an embedding does not depend on its neighbours' last bits.
            context, mask = self.text.encode([caption])
            made[caption] = context[0][mask[0]].cpu().contiguous()
        # Tensors of one memory are not written twice under two names.
        return [made[caption].clone() for caption in captions]
