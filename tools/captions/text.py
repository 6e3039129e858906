"""A small T5 encoder of transformers and a tokenizer of whole words, both made from the captions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F
from tqdm.auto import tqdm

LENGTH, WIDTH = 8, 64
MASKED = 0.3
_SPECIAL = ("<pad>", "</s>", "<unk>", "<mask>")


def make_tokenizer(captions: Sequence[str]) -> Any:
    """A tokenizer of the captions' words, with the end of a sentence after them."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = [*_SPECIAL, *sorted({word for caption in captions for word in caption.lower().split()})]
    inner = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
    inner.normalizer = normalizers.Lowercase()
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    inner.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", mask_token="<mask>",
        model_max_length=LENGTH,
    )  # fmt: skip


def train_text(captions: Sequence[str], folder: Path, steps: int, seed: int) -> float:
    """Train to name every word, a share of them hidden, and save; returns the share of seen words named right.

    Source: Devlin et al. 2019, "BERT", section 3.1 (masked language model), on an encoder of T5's kind.
    """
    from transformers import T5Config, T5EncoderModel

    torch.manual_seed(seed)
    tokenizer = make_tokenizer(captions)
    config = T5Config(
        vocab_size=len(tokenizer), d_model=WIDTH, d_kv=16, d_ff=128, num_layers=2, num_heads=4, dropout_rate=0.0
    )
    model: Any = T5EncoderModel(config)
    head = torch.nn.Linear(WIDTH, len(tokenizer))
    optimizer = torch.optim.AdamW([*model.parameters(), *head.parameters()], lr=2e-3, fused=True)
    draws, right = torch.Generator().manual_seed(seed), 0.0
    tokens = tokenizer(list(captions), padding="max_length", max_length=LENGTH, return_tensors="pt")
    ids, mask = tokens["input_ids"], tokens["attention_mask"].bool()
    for _ in tqdm(range(steps), desc="text", unit="step"):
        chosen = torch.randint(len(ids), (32,), generator=draws)
        wanted, seen = ids[chosen], mask[chosen]
        hidden = torch.rand(wanted.shape, generator=draws) < MASKED
        given = torch.where(hidden, tokenizer.mask_token_id, wanted)
        named = head(model(input_ids=given, attention_mask=seen.long()).last_hidden_state)
        optimizer.zero_grad(set_to_none=True)
        F.cross_entropy(named[seen], wanted[seen]).backward()
        optimizer.step()
        known = seen & ~hidden
        right = float((named.argmax(-1) == wanted)[known].double().mean())
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return right
