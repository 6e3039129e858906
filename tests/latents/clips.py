"""A folder of small captioned clips, and what encodes them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from tests.codecs.tiny import CAPTIONS, make_codec, make_text
from vdiff_fast import data

SHAPES = ((5, 32, 32), (5, 32, 32), (9, 32, 32), (5, 32, 32), (9, 32, 32))


def make_clips(folder: Path, shapes: Sequence[tuple[int, int, int]] = SHAPES) -> Path:
    """clip_0.mp4, ... and captions.csv."""
    folder.mkdir()
    lines = ["file,caption"]
    for number, (frames, height, width) in enumerate(shapes):
        generator = torch.Generator().manual_seed(number)
        video = torch.rand(3, frames, height, width, generator=generator) * 2 - 1
        data.write_video(video, folder / f"clip_{number}.mp4", fps=8)
        lines.append(f"clip_{number}.mp4,{CAPTIONS[number % len(CAPTIONS)]}")
    (folder / "captions.csv").write_text("\n".join(lines) + "\n")
    return folder


def make_encoders(folder: Path, codec: str = "AutoencoderKLWan") -> tuple[Path, Path]:
    make_codec(codec, folder / "vae")
    make_text(folder / "text")
    return folder / "vae", folder / "text"
