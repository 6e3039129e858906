"""A small AutoencoderKL of diffusers, trained on the frames of the clips, with this library's kernels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm.auto import tqdm

from vdiff_fast import data, patch

CONFIG: dict[str, Any] = {
    "block_out_channels": (16, 32, 32), "down_block_types": ("DownEncoderBlock2D",) * 3,
    "up_block_types": ("UpDecoderBlock2D",) * 3, "layers_per_block": 1, "latent_channels": 4, "norm_num_groups": 8,
    "sample_size": 32,
}  # fmt: skip
BATCH, RATE, KL_WEIGHT = 32, 2e-3, 1e-5


def train_codec(clips: Tensor, folder: Path, steps: int, seed: int) -> float:
    """Train on uint8 (N, 3, T, H, W) and save; returns the mean square error of the last steps, of [-1, 1].

    L = |x - decode(z)|^2 + w KL(q(z|x) || N(0, 1)), z ~ q(z|x) (Kingma and Welling 2014, eq. 10). The scaling factor
    is one over the deviation of z, so that a denoiser sees unit variance (Rombach et al. 2022, section G).
    """
    from diffusers import AutoencoderKL

    torch.manual_seed(seed)
    model: Any = AutoencoderKL(**CONFIG)
    patch(model)
    frames = clips.transpose(1, 2).flatten(0, 1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.0, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps + 1)
    draws, errors = torch.Generator().manual_seed(seed), []
    for _ in tqdm(range(steps), desc="codec", unit="step"):
        x = data.to_unit_range(frames[torch.randint(len(frames), (BATCH,), generator=draws)])
        posterior = model.encode(x).latent_dist
        error = F.mse_loss(model.decode(posterior.sample(draws)).sample, x)
        optimizer.zero_grad(set_to_none=True)
        (error + KL_WEIGHT * posterior.kl().mean()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        errors.append(float(error))
    with torch.no_grad():
        z = model.eval().encode(data.to_unit_range(frames[:: max(1, len(frames) // 256)])).latent_dist.sample(draws)
    model.register_to_config(scaling_factor=float(1 / z.std()), shift_factor=float(z.mean()))
    model.save_pretrained(folder)
    return sum(errors[-20:]) / len(errors[-20:])
