"""Read which digit a clip shows and which way it goes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from benchmarks.read_digits import find
from tools.captions.clips import WAYS, WORDS


class Read(NamedTuple):
    """digits (B, T); ways, one per clip; likeness (B, T), 1 for a digit as it was drawn."""

    digits: Tensor
    ways: list[str]
    likeness: Tensor


def read(videos: Tensor, sprites: Tensor) -> Read:
    """Of videos (B, C, T, H, W) in [-1, 1]: the best match of any digit at any place, frame by frame.

    The way is that of the larger part of the move from the mean place of the first half to that of the second.
    """
    digits, likeness, places = find(videos, sprites, torch.arange(len(sprites)))
    half = places.shape[1] // 2
    moves = places[:, -half:].double().mean(1) - places[:, :half].double().mean(1)
    ways = []
    for rows, columns in moves.tolist():
        vertical = abs(rows) > abs(columns)
        step = (int(rows > 0) * 2 - 1, 0) if vertical else (0, int(columns > 0) * 2 - 1)
        ways.append(next(name for name, way in WAYS.items() if way == step))
    return Read(digits, ways, likeness)


def score(videos: Tensor, captions: Sequence[str], sprites: Tensor) -> dict[str, float]:
    """Shares of frames with the digit, and of clips with the way, that the captions name."""
    found = read(videos, sprites)
    named = torch.tensor([WORDS.index(caption.split()[1]) for caption in captions])
    right = found.digits == named[:, None]
    ways = [way == caption.split()[-1] for way, caption in zip(found.ways, captions)]
    return {
        "digits_right_in_frames": float(right.double().mean()),
        "digits_right_in_all_frames": float(right.all(1).double().mean()),
        "ways_right": sum(ways) / len(ways),
        "likeness_mean": float(found.likeness.mean()),
    }
