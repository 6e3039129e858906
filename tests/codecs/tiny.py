"""Codecs and text encoders of every kind, random and small, as folders on disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

CAPTIONS = [f"a {digit} moves {way}" for digit in ("two", "seven", "nine") for way in ("left", "right", "up", "down")]

_CONFIGS: dict[str, dict[str, Any]] = {
    "AutoencoderKL": {
        "block_out_channels": (8, 16, 16), "down_block_types": ("DownEncoderBlock2D",) * 3,
        "up_block_types": ("UpDecoderBlock2D",) * 3, "latent_channels": 4, "norm_num_groups": 4,
        "scaling_factor": 0.5, "shift_factor": 0.1, "sample_size": 32,
    },
    "AutoencoderKLTemporalDecoder": {
        "block_out_channels": (32, 32), "down_block_types": ("DownEncoderBlock2D",) * 2, "latent_channels": 4,
    },
    "AutoencoderKLWan": {
        "base_dim": 4, "z_dim": 4, "dim_mult": [1, 1, 1, 1], "num_res_blocks": 1,
        "latents_mean": [0.1, -0.2, 0.3, 0.0], "latents_std": [1.5, 2.0, 1.0, 0.5],
    },
    "AutoencoderKLCogVideoX": {
        "block_out_channels": (8, 8, 8, 8), "latent_channels": 4, "layers_per_block": 1, "norm_num_groups": 2,
        "temporal_compression_ratio": 4, "sample_height": 32, "sample_width": 32,
        "down_block_types": ("CogVideoXDownBlock3D",) * 4, "up_block_types": ("CogVideoXUpBlock3D",) * 4,
    },
    "AutoencoderKLHunyuanVideo": {
        "block_out_channels": (8, 8, 8, 8), "latent_channels": 4, "layers_per_block": 1, "norm_num_groups": 4,
    },
    "AutoencoderKLLTXVideo": {
        "block_out_channels": (8, 8, 8, 8), "decoder_block_out_channels": (8, 8, 8, 8), "latent_channels": 8,
        "layers_per_block": (1, 1, 1, 1, 1), "decoder_layers_per_block": (1, 1, 1, 1, 1), "patch_size": 1,
        "patch_size_t": 1,
    },
}  # fmt: skip
CODEC_NAMES = tuple(_CONFIGS)


def make_codec(name: str, folder: Path) -> Any:
    """The unpatched module, whose equal is saved in the folder."""
    import diffusers

    torch.manual_seed(0)
    module = getattr(diffusers, name)(**_CONFIGS[name]).eval()
    module.save_pretrained(folder)
    return module


def make_text(folder: Path, kind: str = "T5EncoderModel", width: int = 16, max_length: int = 8) -> Any:
    """A text encoder and a tokenizer of whole words in one folder."""
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    words = ["<pad>", "</s>", "<unk>", *sorted({word for caption in CAPTIONS for word in caption.split()})]
    inner = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    inner.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=max_length
    ).save_pretrained(folder)
    torch.manual_seed(1)
    if kind == "CLIPTextModel":
        config: Any = transformers.CLIPTextConfig(
            vocab_size=len(words), hidden_size=width, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
            max_position_embeddings=max_length, pad_token_id=0, bos_token_id=1, eos_token_id=1,
        )  # fmt: skip
    else:
        make = transformers.UMT5Config if kind.startswith("UMT5") else transformers.T5Config
        config = make(vocab_size=len(words), d_model=width, d_kv=8, d_ff=32, num_layers=2, num_heads=2)
    module = getattr(transformers, kind)(config).eval()
    module.save_pretrained(folder)
    return module
