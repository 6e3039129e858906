"""Bytes that a fine-tuning step keeps for its backward, patched and not: `python -m benchmarks.finetune`.

Random denoisers of two layers with the widths of the published ones, on the CPU in float32, one clip; bytes follow from
shapes, so they are the same on every machine.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import diffusers
import torch
from torch import Tensor

from vdiff_fast.bench.measure import saved_bytes
from vdiff_fast.bench.report import environment
from vdiff_fast.pretrained import Pretrained, parse_lora

# Changes of the constructors' defaults, the clip's latents (c, t, h, w), and channels of the text.
CASES: dict[str, tuple[dict[str, Any], tuple[int, int, int, int], int]] = {
    "WanTransformer3DModel": (
        {"num_attention_heads": 12, "ffn_dim": 8960, "num_layers": 2, "text_dim": 512}, (16, 3, 16, 16), 512
    ),
    "LTXVideoTransformer3DModel": ({"num_layers": 2, "caption_channels": 512}, (128, 3, 8, 8), 512),
    "CogVideoXTransformer3DModel": (
        {"num_layers": 2, "text_embed_dim": 512, "max_text_seq_length": 64, "sample_width": 16, "sample_height": 16,
         "sample_frames": 9, "use_rotary_positional_embeddings": True}, (16, 3, 16, 16), 512,
    ),
    "LatteTransformer3DModel": (
        {"num_attention_heads": 16, "attention_head_dim": 72, "in_channels": 4, "out_channels": 8, "num_layers": 2,
         "cross_attention_dim": 1152, "caption_channels": 512, "sample_size": 16, "patch_size": 2, "video_length": 4,
         "norm_type": "ada_norm_single", "norm_elementwise_affine": False, "activation_fn": "gelu-approximate",
         "num_embeds_ada_norm": 1000}, (4, 4, 16, 16), 512,
    ),
    "UNetMotionModel": (
        {"block_out_channels": (320, 640), "layers_per_block": 1, "cross_attention_dim": 768,
         "down_block_types": ("CrossAttnDownBlockMotion", "DownBlockMotion"),
         "up_block_types": ("UpBlockMotion", "CrossAttnUpBlockMotion")}, (4, 8, 16, 16), 768,
    ),
}  # fmt: skip
TOKENS = 64


def bytes_of(name: str, lora: bool, patched: bool) -> tuple[int, Tensor]:
    """Saved bytes of one step, and its prediction."""
    changes, latents, width = CASES[name]
    torch.manual_seed(0)
    adapter = parse_lora("rank=16") if lora else None
    model = Pretrained(getattr(diffusers, name)(**changes), lora=adapter, patched=patched)
    x, context = torch.randn(1, *latents), torch.randn(1, TOKENS, width)
    t = torch.tensor([0.5]) if model.family.flow else torch.tensor([500])
    kept = saved_bytes(lambda: model(x, t, context=context))
    with torch.no_grad():
        return kept, model.eval()(x, t, context=context)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=None, help="JSON to write")
    given = parser.parse_args()
    rows = []
    for name in CASES:
        for lora in (False, True):
            (plain, expected), (fused, found) = bytes_of(name, lora, False), bytes_of(name, lora, True)
            error = float((found - expected).norm() / expected.norm())
            if not error < 1e-4:
                raise SystemExit(f"{name}: patched differs by {error:.1e}; no bytes are told of a wrong result")
            rows.append({"model": name, "lora": lora, "unpatched": plain, "patched": fused, "error": error})
            before, after = plain / 2**20, fused / 2**20
            kind = "LoRA" if lora else "full"
            print(f"{name:<30} {kind} {before:8.1f} -> {after:8.1f} MiB, {error:.0e}", flush=True)
    if given.out is not None:
        document = {"environment": environment(torch.device("cpu")), "finetune": rows}
        given.out.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
