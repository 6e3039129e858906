"""Each text encoder equals transformers' own call; masks, null prompts, errors."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.codecs.tiny import make_codec, make_text
from vdiff_fast.codecs import TextError, load_text


@pytest.mark.parametrize("kind", ["T5EncoderModel", "UMT5EncoderModel", "CLIPTextModel"])
@torch.no_grad()
def test_embeddings_equal_transformers_own(kind: str, tmp_path: Path) -> None:
    module = make_text(tmp_path, kind)
    encoder = load_text(tmp_path)
    context, mask = encoder.encode(["a seven moves left", ""])
    assert context.shape == (2, 8, encoder.width) == (2, 8, 16)
    assert mask.sum(1).tolist() == [5, 1]
    tokens = encoder.tokenizer(["a seven moves left", ""], padding="max_length", max_length=8, return_tensors="pt")
    own = module(input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"]).last_hidden_state
    torch.testing.assert_close(context[mask], own[mask], rtol=1e-5, atol=1e-5)
    assert not context[~mask].any()
    # What is padded does not reach the tokens of the prompt.
    alone = encoder.tokenizer(["a seven moves left"], return_tensors="pt")
    short = module(input_ids=alone["input_ids"], attention_mask=alone["attention_mask"]).last_hidden_state
    torch.testing.assert_close(context[0, :5], short[0], rtol=1e-5, atol=1e-5)


def test_bad_prompts_and_folders(tmp_path: Path) -> None:
    make_text(tmp_path / "text")
    encoder = load_text(tmp_path / "text")
    with pytest.raises(TextError, match="'' for the null prompt"):
        encoder.encode([])
    with pytest.raises(TextError, match="has 13 tokens, the encoder's length is 8; shorten it"):
        encoder.encode(["a " * 12])
    make_codec("AutoencoderKL", tmp_path / "vae")
    with pytest.raises(TextError, match="is a AutoencoderKL; text encoders are T5, UMT5 and CLIP"):
        load_text(tmp_path / "vae")
    with pytest.raises(TextError, match="no such folder"):
        load_text(tmp_path / "absent")
    (tmp_path / "text" / "tokenizer.json").unlink()
    with pytest.raises(TextError, match="tokenizer cannot be loaded"):
        load_text(tmp_path / "text")


def test_the_fingerprint_is_of_weights_words_and_length(tmp_path: Path) -> None:
    make_text(tmp_path / "a")
    make_text(tmp_path / "b")
    make_text(tmp_path / "c", width=24)
    first = load_text(tmp_path / "a").fingerprint
    assert load_text(tmp_path / "b").fingerprint == first
    assert load_text(tmp_path / "a", max_length=6).fingerprint != first
    assert load_text(tmp_path / "c").fingerprint != first
