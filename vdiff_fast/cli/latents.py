"""`vdiff-fast cache --codec`: latents and embeddings of captioned clips."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast, get_args

import torch
from tqdm import tqdm

from vdiff_fast.cli.options import parse_size
from vdiff_fast.codecs.text import Padding

if TYPE_CHECKING:
    from vdiff_fast.codecs import Codec
    from vdiff_fast.data import Tolerance
    from vdiff_fast.latents import Bucket

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def cache_latents(
    source: Path, folder: Path, codec_folder: Path, text_folder: Path | None, captions_file: Path | None, *,
    buckets: Sequence[str] | None, frames: int, size: str, fps: float | None, limit: float, tolerance: Tolerance,
    text_length: int | None, text_padding: str, memory: int | None, shard_clips: int, skip_uncaptioned: bool,
    device: str, precision: str,
) -> None:  # fmt: skip
    """See `vdiff_fast.latents.write_cache`; under torchrun each rank writes its part.

    Raises:
        ValueError: options that do not go together, and those of `write_cache`.
    """
    from vdiff_fast import data, latents
    from vdiff_fast.codecs import limit_memory, load_codec, load_text
    from vdiff_fast.training.distributed import choose_device

    if text_folder is None:
        raise ValueError("--codec needs --text: the folder of a text encoder and its tokenizer")
    if text_padding not in get_args(Padding):
        raise ValueError(f"--text-padding {text_padding!r} must be one of {', '.join(get_args(Padding))}")
    padding = cast(Padding, text_padding)
    if precision not in DTYPES:
        raise ValueError(f"precision {precision!r} must be fp32, bf16 or fp16")
    videos = data.find_videos(source)
    if not videos:
        raise data.EmptyDatasetError(f"{source}: holds no video")
    root = source if source.is_dir() else source.parent
    captions = latents.read_captions(videos, root, captions_file, missing="skip" if skip_uncaptioned else "error")
    chosen = choose_device(device)
    codec = load_codec(codec_folder, device=chosen, dtype=DTYPES[precision])
    text = load_text(text_folder, max_length=text_length, device=chosen, dtype=DTYPES[precision], padding=padding)
    shapes = _buckets(buckets, frames, size, list(captions), codec, fps, tolerance)
    if memory is not None:
        limit_memory(codec, memory << 20, max(b.height for b in shapes), max(b.width for b in shapes))
    options = latents.CacheOptions(shapes, fps=fps, shard_clips=shard_clips, skip_limit=limit, tolerance=tolerance)
    rank, world_size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    report = latents.write_cache(
        folder, captions, root, codec, text, options, rank=rank, world_size=world_size,
        progress=_progress if rank == 0 else None,
    )  # fmt: skip
    for reason in report.skipped:
        print(f"skipped: {reason}")
    mib = sum(path.stat().st_size for path in folder.glob("*.safetensors")) / 2**20
    shown = ", ".join(str(bucket) for bucket in shapes)
    print(f"{report.clips} clips ({report.new} new) in buckets {shown}, {mib:.1f} MiB in {folder}; {report.summary}")


def _progress(items: Iterator[Any], total: int) -> Iterator[Any]:
    return iter(tqdm(items, total=total, unit="clip", leave=False))


def _buckets(
    given: Sequence[str] | None, frames: int, size: str, videos: Sequence[Path], codec: Codec, fps: float | None,
    tolerance: Tolerance,
) -> tuple[Bucket, ...]:  # fmt: skip
    from vdiff_fast import data, latents

    side = parse_size(size)
    if not given:
        height, width = (side, side) if isinstance(side, int) else side
        return (latents.Bucket(frames, height, width),)
    if list(given) != ["auto"]:
        return tuple(dict.fromkeys(latents.parse_bucket(text) for text in given))
    if not isinstance(side, int):
        raise ValueError("--bucket auto takes --size as one number, the side of a square of as many pixels")
    shapes = []
    for video in videos:
        try:
            seen = data.scan(video, threads=1)
        except data.VideoError:
            continue  # counted and told when it is read
        if seen.problem(tolerance) is None:
            shapes.append((len(seen.grid(fps)), seen.height, seen.width))
    if not shapes:
        raise data.EmptyDatasetError("--bucket auto: no usable video to choose buckets from")
    time, space, _ = codec.compression
    # Sides of two latents fit the patch of 2 that denoisers usually have.
    return tuple(latents.suggested_buckets(shapes, frames, side, (time * codec.kind.group, 2 * space)))
