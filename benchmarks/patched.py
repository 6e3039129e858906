"""Models of diffusers before and after `vf.patch`: `python -m benchmarks.patched` (needs diffusers).

Random weights, the widths of the real models' first levels; the unpatched copy runs interleaved with the patched one.
"""

from __future__ import annotations

import argparse
import copy
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    LatteTransformer3DModel,
    UNet3DConditionModel,
    UNetMotionModel,
    UNetSpatioTemporalConditionModel,
)
from torch import nn

import vdiff_fast as vf
from vdiff_fast.bench.measure import interleaved, peak_bytes, saved_bytes
from vdiff_fast.bench.report import environment, machine_name

WIDTHS = {"block_out_channels": (320, 640), "layers_per_block": 1, "cross_attention_dim": 768}
Built = tuple[nn.Module, dict[str, Any]]


def animatediff() -> Built:
    model = UNetMotionModel(
        **WIDTHS, num_attention_heads=8, motion_num_attention_heads=8, use_motion_mid_block=True,
        down_block_types=("CrossAttnDownBlockMotion", "DownBlockMotion"),
        up_block_types=("UpBlockMotion", "CrossAttnUpBlockMotion"),
    )  # fmt: skip
    return model, {
        "sample": torch.randn(1, 4, 16, 16, 16), "timestep": torch.tensor([500]),
        "encoder_hidden_states": torch.randn(16, 77, 768),
    }  # fmt: skip


def stable_video_diffusion() -> Built:
    model = UNetSpatioTemporalConditionModel(
        **WIDTHS | {"cross_attention_dim": 1024}, num_attention_heads=(5, 10),
        down_block_types=("CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"),
        up_block_types=("UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"),
    )  # fmt: skip
    return model, {
        "sample": torch.randn(1, 14, 8, 16, 16), "timestep": torch.tensor([500.0]),
        "encoder_hidden_states": torch.randn(1, 1, 1024), "added_time_ids": torch.tensor([[6.0, 127.0, 0.02]]),
    }  # fmt: skip


def modelscope() -> Built:
    model = UNet3DConditionModel(
        **WIDTHS, attention_head_dim=64,
        down_block_types=("CrossAttnDownBlock3D", "DownBlock3D"), up_block_types=("UpBlock3D", "CrossAttnUpBlock3D"),
    )  # fmt: skip
    return model, {
        "sample": torch.randn(1, 4, 16, 16, 16), "timestep": torch.tensor([500]),
        "encoder_hidden_states": torch.randn(1, 77, 768),
    }  # fmt: skip


def latte() -> Built:
    model = LatteTransformer3DModel(
        num_attention_heads=16, attention_head_dim=72, in_channels=4, out_channels=8, num_layers=2, sample_size=32,
        cross_attention_dim=1152, caption_channels=4096, patch_size=2, video_length=16,
    )  # fmt: skip
    return model, {
        "hidden_states": torch.randn(1, 4, 16, 16, 16), "timestep": torch.tensor([500]),
        "encoder_hidden_states": torch.randn(1, 77, 4096),
    }  # fmt: skip


def sd_vae() -> Built:
    model = AutoencoderKL(
        block_out_channels=(128, 256, 512, 512), layers_per_block=2, latent_channels=4,
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
    )  # fmt: skip
    return model, {"sample": torch.randn(1, 3, 128, 128)}


MODELS: dict[str, Callable[[], Built]] = {
    "AnimateDiff, 2 levels": animatediff,
    "Stable Video Diffusion, 2 levels": stable_video_diffusion,
    "ModelScope, 2 levels": modelscope,
    "Latte, 2 blocks": latte,
    "Stable Diffusion's VAE": sd_vae,
}


def _sample(model: nn.Module, inputs: dict[str, Any]) -> Any:
    with torch.no_grad():
        return model(**inputs)[0]


def _loss(model: nn.Module, inputs: dict[str, Any]) -> Any:
    return model(**inputs)[0].square().mean()


def _train(model: nn.Module, inputs: dict[str, Any]) -> Any:
    model.zero_grad(set_to_none=True)
    loss = _loss(model, inputs)
    loss.backward()
    return loss


def measure(name: str, device: torch.device, seconds: float) -> list[dict[str, Any]]:
    """Rows of a sampling call and of a training step, milliseconds and bytes of both."""
    torch.manual_seed(0)
    plain, inputs = MODELS[name]()
    plain = plain.to(device).eval()
    inputs = {key: value.to(device) if isinstance(value, torch.Tensor) else value for key, value in inputs.items()}
    fused = copy.deepcopy(plain)
    report = vf.patch(fused)
    difference = float((_sample(fused, inputs) - _sample(plain, inputs)).norm() / _sample(plain, inputs).norm())
    rows = []
    for what, step in (("sample", _sample), ("train", _train)):
        calls = {"patched": partial(step, fused, inputs), "plain": partial(step, plain, inputs)}
        row: dict[str, Any] = {"model": name, "step": what, "modules": report.count, "difference": difference}
        for key, timing in interleaved(calls, device=device, seconds=seconds, min_runs=3).items():
            row[f"{key}_ms"], row[f"{key}_peak_bytes"] = timing.median, peak_bytes(calls[key], device)
        if what == "train":
            for key, model in (("patched", fused), ("plain", plain)):
                row[f"{key}_saved_bytes"] = saved_bytes(partial(_loss, model, inputs))
        rows.append(row)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seconds", type=float, default=8.0, help="of timing for each step of each model")
    parser.add_argument("--model", choices=MODELS, nargs="*", default=list(MODELS))
    parser.add_argument("--out", default="benchmarks/results")
    given = parser.parse_args()
    device = torch.device(given.device)
    rows: list[dict[str, Any]] = []
    for name in given.model:
        for row in measure(name, device, given.seconds):
            rows.append(row)
            ratio = row["plain_ms"] / row["patched_ms"]
            print(f"{name:<34} {row['step']:<7} {row['patched_ms']:9.1f} ms  {ratio:.2f} x plain", flush=True)
    path = Path(given.out) / machine_name(device) / "patched.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"environment": environment(device), "patched": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
