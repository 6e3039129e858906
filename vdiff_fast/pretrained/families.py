"""The denoisers of diffusers that are known, one record each: how its pipeline calls it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Inputs:
    """What a denoiser is called with.

    Attributes:
        x: (B, c, t, h, w).
        t: (B,) steps; of a flow 1000 s.
        context: (B, L, D).
        mask: (B, L) bool.
        compression: frames, rows and columns of pixels for one latent.
        fps: of the clips.
    """

    x: Tensor
    t: Tensor
    context: Tensor
    mask: Tensor
    compression: tuple[int, int, int]
    fps: float


@dataclass(frozen=True)
class Family:
    """One class of denoiser.

    Attributes:
        name: of the class in diffusers.
        pipeline: the class whose LoRA format is written.
        part: its folder in a pipeline, and its name in LoRA files.
        context_dim: the key of its configuration that says D.
        call: (module, inputs) -> prediction (B, c, t, h, w).
        flow: whether it predicts the velocity of a flow; else its scheduler says what it predicts.
        padding: how its pipeline's text encoder treats padding, see `TextEncoder`.
    """

    name: str
    pipeline: str
    part: str
    context_dim: str
    call: Callable[[Any, Inputs], Tensor]
    flow: bool
    padding: str


def _wan(module: Any, i: Inputs) -> Tensor:
    # Prompts are padded with zeros, and the padding is seen.
    return module(hidden_states=i.x, timestep=i.t, encoder_hidden_states=i.context, return_dict=False)[0]


def _ltx(module: Any, i: Inputs) -> Tensor:
    tokens, (t, h, w) = i.x.flatten(2).transpose(1, 2), i.x.shape[2:]
    scale = (i.compression[0] / i.fps, i.compression[1], i.compression[2])
    out = module(
        hidden_states=tokens, encoder_hidden_states=i.context, timestep=i.t, encoder_attention_mask=i.mask.long(),
        num_frames=t, height=h, width=w, rope_interpolation_scale=scale, return_dict=False,
    )[0]  # fmt: skip
    return out.transpose(1, 2).unflatten(2, (t, h, w))


def _cogvideox(module: Any, i: Inputs) -> Tensor:
    x, rotary = i.x.transpose(1, 2), None
    if module.config.use_rotary_positional_embeddings:
        from diffusers import CogVideoXPipeline

        # Of latents, as which height and width are given.
        pipeline: Any = SimpleNamespace(vae_scale_factor_spatial=1, transformer=module)
        rotary = CogVideoXPipeline._prepare_rotary_positional_embeddings(
            pipeline, x.shape[3], x.shape[4], x.shape[1], x.device
        )
    out = module(
        hidden_states=x, encoder_hidden_states=i.context, timestep=i.t, image_rotary_emb=rotary, return_dict=False
    )[0]
    return out.transpose(1, 2)


def _latte(module: Any, i: Inputs) -> Tensor:
    # Its pipeline cuts padding off; a bias of every frame's tokens does so for prompts of several lengths.
    bias = torch.where(i.mask, 0.0, -10000.0).to(i.x.dtype)[:, None].repeat_interleave(i.x.shape[2], dim=0)
    out = module(
        i.x, timestep=i.t, encoder_hidden_states=i.context, encoder_attention_mask=bias, return_dict=False
    )[0]  # fmt: skip
    return out[:, : i.x.shape[1]]  # the rest is a learned variance, which its pipeline does not read


def _animatediff(module: Any, i: Inputs) -> Tensor:
    context = i.context.repeat_interleave(i.x.shape[2], dim=0)
    return module(i.x, i.t, encoder_hidden_states=context, return_dict=False)[0]


def _modelscope(module: Any, i: Inputs) -> Tensor:
    return module(i.x, i.t, encoder_hidden_states=i.context, return_dict=False)[0]


FAMILIES = {
    family.name: family
    for family in (
        Family("WanTransformer3DModel", "WanPipeline", "transformer", "text_dim", _wan, True, "masked"),
        Family("LTXVideoTransformer3DModel", "LTXPipeline", "transformer", "caption_channels", _ltx, True, "encoded"),
        Family(
            "CogVideoXTransformer3DModel", "CogVideoXPipeline", "transformer", "text_embed_dim", _cogvideox, False,
            "seen",
        ),
        Family("LatteTransformer3DModel", "LattePipeline", "transformer", "caption_channels", _latte, False, "masked"),
        Family("UNetMotionModel", "AnimateDiffPipeline", "unet", "cross_attention_dim", _animatediff, False, "seen"),
        Family(
            "UNet3DConditionModel", "TextToVideoSDPipeline", "unet", "cross_attention_dim", _modelscope, False, "seen"
        ),
    )
}  # fmt: skip
