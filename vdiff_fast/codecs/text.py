"""Text encoders of transformers behind one interface: prompts to embeddings and their mask."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from vdiff_fast.codecs.fingerprint import fingerprint
from vdiff_fast.codecs.kinds import class_name_of

# Classes of a text_encoder's config.json, and the class that computes its embeddings.
TEXT_ENCODERS = {
    "T5EncoderModel": "T5EncoderModel",
    "T5ForConditionalGeneration": "T5EncoderModel",
    "T5Model": "T5EncoderModel",
    "UMT5EncoderModel": "UMT5EncoderModel",
    "UMT5ForConditionalGeneration": "UMT5EncoderModel",
    "UMT5Model": "UMT5EncoderModel",
    "CLIPTextModel": "CLIPTextModel",
    "CLIPModel": "CLIPTextModel",
}


Padding = Literal["masked", "encoded", "seen"]


class TextError(ValueError):
    """A folder that holds no text encoder, or prompts that cannot be encoded; the message says what would work."""


class Encoded(NamedTuple):
    """Embeddings (B, L, D) float32, zero where padded, and their mask (B, L) bool: True for tokens of the prompt."""

    context: Tensor
    mask: Tensor


@dataclass
class TextEncoder:
    """A text encoder with its tokenizer.

    Attributes:
        module: a T5, UMT5 or CLIP text encoder of transformers, in evaluation mode.
        tokenizer: its tokenizer.
        max_length: L, to which every prompt is padded; longer ones are an error.
        folder: where it was loaded from.
        padding: "masked", no token attends to padding, and the mask says what padding is (Wan, Latte); "encoded", the
            encoder attends to it (LTX); or "seen", the denoiser does so, too (CogVideoX, Stable Diffusion's U-Nets).
    """

    module: Any
    tokenizer: Any
    max_length: int
    folder: Path | None = None
    padding: Padding = "masked"

    @property
    def width(self) -> int:
        """D."""
        config = self.module.config
        return int(getattr(config, "d_model", None) or config.hidden_size)

    @cached_property
    def fingerprint(self) -> str:
        """Of the configuration, the weights, the tokenizer's words, L and the padding."""
        config = self.module.config.to_dict() | {"max_length": self.max_length, "vocab": self.tokenizer.get_vocab()}
        config |= {"padding": self.padding}
        # transformers notes its own version and how the model was loaded.
        config = {k: v for k, v in config.items() if k not in ("transformers_version", "dtype", "torch_dtype")}
        return fingerprint(config, self.module.state_dict())

    @torch.no_grad()
    def encode(self, prompts: Sequence[str]) -> Encoded:
        """The embeddings of the prompts; "" is the null prompt.

        Raises:
            TextError: no prompt at all, or one of more tokens than L.
        """
        if not prompts:
            raise TextError("no prompt was given; give one, or '' for the null prompt")
        lengths = [len(ids) for ids in self.tokenizer(list(prompts))["input_ids"]]
        longest = max(range(len(prompts)), key=lengths.__getitem__)
        if lengths[longest] > self.max_length:
            shown = prompts[longest] if len(prompts[longest]) <= 60 else prompts[longest][:57] + "..."
            raise TextError(
                f"the prompt {shown!r} has {lengths[longest]} tokens, the encoder's length is {self.max_length}; "
                "shorten it, or encode with a larger --text-length"
            )
        tokens = self.tokenizer(
            list(prompts), padding="max_length", max_length=self.max_length, return_tensors="pt",
            return_attention_mask=True,
        )  # fmt: skip
        device = next(self.module.parameters()).device
        mask = tokens["attention_mask"].to(device)
        attended = mask if self.padding == "masked" else torch.ones_like(mask)
        hidden = self.module(input_ids=tokens["input_ids"].to(device), attention_mask=attended).last_hidden_state
        seen = torch.ones_like(mask, dtype=torch.bool) if self.padding == "seen" else mask.bool()
        return Encoded(hidden.float() * seen.unsqueeze(-1), seen)


def load_text(
    folder: str | os.PathLike[str], *, max_length: int | None = None, device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32, padding: Padding = "masked",
) -> TextEncoder:  # fmt: skip
    """The text encoder of a local folder: encoder and tokenizer in it, or in text_encoder/ and tokenizer/.

    Nothing is downloaded.

    Args:
        folder: see above.
        max_length: tokens that prompts are padded to; left out, the tokenizer's own, at most 512.
        device, dtype: where and in which dtype it computes.
        padding: see `TextEncoder`.

    Raises:
        TextError: no such folder, another class than those of `TEXT_ENCODERS`, or no tokenizer beside it.
        ImportError: transformers is not installed.
    """
    try:
        import transformers
    except ImportError as error:
        raise ImportError("text encoders are those of transformers: pip install transformers") from error
    root = Path(folder)
    encoder = root / "text_encoder" if (root / "text_encoder").is_dir() else root
    words = root / "tokenizer" if (root / "tokenizer").is_dir() else encoder
    name = class_name_of(encoder, "a text encoder", TextError)
    if name not in TEXT_ENCODERS:
        raise TextError(f"{encoder}: is a {name or 'model of no named class'}; text encoders are T5, UMT5 and CLIP")
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(words, local_files_only=True)
        cls = getattr(transformers, TEXT_ENCODERS[name])
        module = cls.from_pretrained(encoder, dtype=dtype, local_files_only=True)
    except (OSError, RuntimeError, ValueError, TypeError, KeyError) as error:
        raise TextError(f"{root}: the {name} or its tokenizer cannot be loaded: {' '.join(str(error).split())}") from (
            error
        )
    length = max_length or min(int(tokenizer.model_max_length), 512)
    module.eval().requires_grad_(False)
    return TextEncoder(module.to(device), tokenizer, length, root, padding)
