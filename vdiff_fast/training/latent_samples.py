"""Videos from a run that was trained on latents: prompts to embeddings, noise to latents, latents to pixels."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from vdiff_fast import diffusion
from vdiff_fast.codecs import Codec, CodecError, TextEncoder, TextError, limit_memory, load_codec, load_text
from vdiff_fast.latents import Bucket, CacheError, LatentInfo, check_encoders
from vdiff_fast.training.latents import flow_shift_of

if TYPE_CHECKING:
    from vdiff_fast.training.config import TrainConfig

Text = tuple[Tensor, Tensor]


def load_encoders(
    info: LatentInfo, codec: str | os.PathLike[str] | None = None, text: str | os.PathLike[str] | None = None, *,
    device: str | torch.device = "cpu",
) -> tuple[Codec, TextEncoder]:  # fmt: skip
    """The codec and the text encoder of a run, from where the cache found them unless other folders are given.

    Raises:
        CacheError: a folder is gone, or holds other weights than the run was trained with.
    """
    try:
        loaded = load_codec(codec or info.codec, device=device)
        encoder = load_text(text or info.text, max_length=info.text_length, device=device, padding=info.text_padding)
    except (CodecError, TextError) as error:
        raise CacheError(
            f"{error}; the run's codec and text encoder may have moved: give --codec and --text"
        ) from error
    check_encoders(info, loaded, encoder)
    return loaded, encoder


@dataclass(frozen=True)
class Known:
    """What is given of a clip: normalised latents (1, c, t, h, w) and their mask, as `diffusion.condition` takes it."""

    latents: Tensor
    mask: Tensor


def known_latents(codec: Codec, pixels: Tensor, frames: int) -> Known:
    """The first `frames` frames of pixels (1, C, T, H, W) as known latents.

    Raises:
        CodecError: these frames are not whole latents; the message says how many are.
    """
    t, h, w = codec.latent_shape(*pixels.shape[2:])
    known, _, _ = codec.latent_shape(frames, *pixels.shape[3:])
    mean = codec.normalise(codec.encode(pixels[:, :, :frames]).mean)
    whole = mean.new_zeros(1, codec.latent_channels, t, h, w)
    whole[:, :, :known] = mean
    return Known(whole, diffusion.frame_mask(t, range(known), device=mean.device))


def draw_latents(
    model: nn.Module, schedule: diffusion.NoiseSchedule, config: TrainConfig, info: LatentInfo, bucket: Bucket,
    text: Text, negative: Text, *, guidance: float | diffusion.Guidance = 1.0, known: Known | None = None,
    **options: Any,
) -> Tensor:  # fmt: skip
    """Normalised latents (B, c, t, h, w) of one clip for every prompt.

    Args:
        model, schedule, config, info: of the run.
        bucket: frames, height and width in pixels.
        text: embeddings (B, L, D) and mask (B, L) of the prompts.
        negative: embeddings and mask of the negative or the empty prompt, of batch 1 or B, that guidance leads away
            from.
        guidance: its scale, or all of it.
        known: what is given of the clips.
        options: sampler, steps, spacing, seed, churn, progress of `diffusion.sample`.

    Raises:
        ConditionError: something is known, and the model was trained without masks.
        ValueError: those of `diffusion.sample`.
    """
    device, count = schedule.device, len(text[0])
    shape = (count, info.latent_channels, *info.latent_shape(bucket))
    wanted = config.diffusion
    if wanted.flow_shift_positions is not None:
        positions = shape[2] * shape[3] * shape[4]
        shift = flow_shift_of(wanted.flow_shift, wanted.flow_shift_positions, positions)
        schedule = diffusion.NoiseSchedule.flow(wanted.timesteps, shift=shift).to(device)
    cond = None
    if known is not None:
        diffusion.require_conditioning(model, info.latent_channels)
        known = Known(known.latents.to(device).expand(shape), known.mask.to(device))
        cond = diffusion.condition(known.latents, known.mask)
    context, mask = (tensor.to(device) for tensor in text)
    others = [tensor.to(device).expand(count, *tensor.shape[1:]) for tensor in negative]
    latents = diffusion.sample(
        model, shape, schedule, context=context, context_mask=mask, cond=cond, target=wanted.target,
        continuous_time=wanted.continuous_time,
        guidance=replace(
            diffusion.as_guidance(guidance), uncond={"context": others[0], "context_mask": others[1]}
        ),
        **options,
    )  # fmt: skip
    return latents if known is None else diffusion.keep_known(latents, known.latents, known.mask)


def decode_latents(codec: Codec, latents: Tensor, *, memory: int | None = None, progress: bool = False) -> Tensor:
    """Pixels (B, C, T, H, W), about [-1, 1], on the CPU, one clip after the other.

    Args:
        codec: of the run.
        latents: normalised.
        memory: bytes that one call may need about; sets chunks and tiles, see `limit_memory`.
        progress: show one bar over the clips.
    """
    if memory is not None:
        limit_memory(codec, memory, *codec.pixel_shape(*latents.shape[2:])[1:])
    clips: Any = latents.split(1)
    if progress:
        from tqdm.auto import tqdm

        clips = tqdm(clips, desc="decoding", unit="clip")
    return torch.cat([codec.decode(codec.denormalise(clip)).cpu() for clip in clips])
