"""What `vdiff-fast sample` does with a run that was trained on captions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from vdiff_fast.cli.known import known_clip

if TYPE_CHECKING:
    from vdiff_fast.diffusion import Guidance
    from vdiff_fast.latents import Bucket
    from vdiff_fast.training.generate import TrainedRun


def read_prompts(given: Sequence[str] | None, file: Path | None) -> list[str]:
    """The prompts of --prompt, then those of the file, one a line.

    Raises:
        ValueError: an empty prompt, or a file without one.
    """
    prompts = list(given or [])
    if any(not prompt.strip() for prompt in prompts):
        raise ValueError("--prompt is empty; write what the video shows, or leave --prompt out for the null prompt")
    if file is not None:
        try:
            lines = file.read_text().splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"--prompts {file}: cannot be read as text ({error})") from error
        read = [line.strip() for line in lines if line.strip()]
        if not read:
            raise ValueError(f"--prompts {file}: holds no prompt; write one a line")
        prompts += read
    return prompts


def bucket_of(trained: TrainedRun, frames: int | None, size: int | tuple[int, int] | None) -> Bucket:
    """The clip that is asked for; what is left out is that of the cache's first bucket."""
    from vdiff_fast.latents import Bucket

    assert trained.latents is not None
    first = trained.latents.buckets[0]
    height, width = (first.height, first.width) if size is None else (size, size) if isinstance(size, int) else size
    return Bucket(frames or first.frames, height, width)


def draw_prompts(
    trained: TrainedRun, prompts: Sequence[str], negative: str, bucket: Bucket, guidance: Guidance, *,
    codec: Path | None, text: Path | None, memory: int | None, first_frame: Path | None, video: Path | None,
    keep: int | None, **options: Any,
) -> Tensor:  # fmt: skip
    """Pixels (B, C, T, H, W) of one clip for each prompt; options are those of `draw_latents`.

    Raises:
        CacheError: the codec or the text encoder is not that of the run.
        CodecError: frames or a size that the codec cannot take.
        TextError: a prompt that is too long.
        ValueError: those of `known_clip` and of `diffusion.sample`.
    """
    from vdiff_fast.training.latent_samples import decode_latents, draw_latents, known_latents, load_encoders

    info = trained.latents
    assert info is not None
    device = trained.schedule.device
    coder, encoder = load_encoders(info, codec, text, device=device)
    coder.latent_shape(*bucket)
    known = None
    clip = known_clip((info.channels, *bucket), first_frame, None, video, keep, None)
    if clip is not None:
        known = known_latents(coder, clip[0], int(clip[1].sum()))
    latents = draw_latents(
        trained.model, trained.schedule, trained.config, info, bucket, encoder.encode(list(prompts)),
        encoder.encode([negative]), guidance=guidance, known=known, progress=True, **options,
    )  # fmt: skip
    with torch.autocast(device.type, enabled=False):
        return decode_latents(coder, latents, memory=memory, progress=True)
