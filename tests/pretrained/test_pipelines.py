"""The sampler with a pretrained denoiser and codec gives what diffusers' own pipeline gives from the same noise."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor

from tests.codecs.tiny import make_codec
from tests.pretrained.tiny import make_pipeline
from vdiff_fast import diffusion
from vdiff_fast.codecs import load_codec
from vdiff_fast.pretrained import FAMILIES, conventions, load_pretrained, schedule_of

STEPS, GUIDANCE, SIDE = 4, 3.0, 32
CODECS = {
    "WanTransformer3DModel": ("AutoencoderKLWan", 5, {}),
    "LTXVideoTransformer3DModel": ("AutoencoderKLLTXVideo", 9, {"in_channels": 8, "out_channels": 8}),
    "CogVideoXTransformer3DModel": ("AutoencoderKLCogVideoX", 9, {"sample_width": 4, "sample_height": 4}),
}


def _texts() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(5)
    return torch.randn(1, 8, 16, generator=generator), torch.randn(1, 8, 16, generator=generator)


def _own(name: str, folder: Path, module: Any, vae: Any, noise: Tensor, frames: int) -> Tensor:
    """The pipeline's video (B, C, T, H, W) in [0, 1]."""
    scheduler = getattr(diffusers, _scheduler_class(folder)).from_pretrained(folder / "scheduler")
    pipeline = getattr(diffusers, FAMILIES[name].pipeline)(
        tokenizer=None, text_encoder=None, vae=vae, scheduler=scheduler, transformer=module
    )
    pipeline.set_progress_bar_config(disable=True)
    prompt, negative = _texts()
    options: dict[str, Any] = {}
    if name == "LTXVideoTransformer3DModel":
        mask = torch.ones(1, 8, dtype=torch.long)
        options = {"prompt_attention_mask": mask, "negative_prompt_attention_mask": mask, "frame_rate": 25}
        noise = noise.flatten(2).transpose(1, 2)
    elif name == "CogVideoXTransformer3DModel":
        noise = noise.transpose(1, 2)
    return pipeline(
        prompt_embeds=prompt, negative_prompt_embeds=negative, latents=noise.clone(), num_inference_steps=STEPS,
        guidance_scale=GUIDANCE, height=SIDE, width=SIDE, num_frames=frames, output_type="pt", **options,
    ).frames.transpose(1, 2)  # fmt: skip


def _scheduler_class(folder: Path) -> str:
    return str(json.loads((folder / "scheduler" / "scheduler_config.json").read_text())["_class_name"])


def _ltx_shift(positions: int) -> float:
    """exp(mu) of its pipeline's line through (256, 0.95) and (4096, 2.05)."""
    return float(torch.tensor(0.95 + (2.05 - 0.95) / (4096 - 256) * (positions - 256)).exp())


@pytest.mark.parametrize("name", list(CODECS))
@torch.no_grad()
def test_a_pipelines_video_is_reproduced_from_its_noise(name: str, tmp_path: Path) -> None:
    codec_name, frames, changes = CODECS[name]
    make_codec(codec_name, tmp_path / "vae")
    make_pipeline(name, tmp_path, **changes)
    codec, model = load_codec(tmp_path), load_pretrained(tmp_path)
    model.eval()
    model.compression = codec.compression
    shape = (1, codec.latent_channels, *codec.latent_shape(frames, SIDE, SIDE))
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(3))
    fixed, _ = conventions(tmp_path)
    schedule, sampler, spacing = diffusion.NoiseSchedule.flow(shift=3.0), "euler", "linspace"
    if fixed["schedule"] == "model":
        schedule, sampler, spacing = schedule_of(tmp_path), "ddim", "trailing"
    elif name == "LTXVideoTransformer3DModel":
        schedule, spacing = diffusion.NoiseSchedule.flow(shift=_ltx_shift(noise[0, 0].numel())), "trailing"
    prompt, negative = _texts()
    latents = diffusion.sample(
        model, shape, schedule, sampler, steps=STEPS, spacing=spacing, target=fixed["target"], latents=noise,
        continuous_time=fixed["continuous_time"], context=prompt,
        guidance=diffusion.Guidance(GUIDANCE, uncond={"context": negative}),
    )  # fmt: skip
    ours = (codec.decode(codec.denormalise(latents)) / 2 + 0.5).clamp(0, 1)
    own_network = getattr(diffusers, name).from_pretrained(tmp_path / "transformer")
    own_vae = getattr(diffusers, codec_name).from_pretrained(tmp_path / "vae")
    theirs = _own(name, tmp_path, own_network.eval(), own_vae.eval(), noise, frames)
    assert theirs.std() > 0.01
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
