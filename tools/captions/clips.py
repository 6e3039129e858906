"""A folder of clips, each of one handwritten digit that moves straight, and captions.csv."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vdiff_fast import data
from vdiff_fast.data.digits import MovingDigits

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
# Rows and columns per frame.
WAYS = {"left": (0, -1), "right": (0, 1), "up": (-1, 0), "down": (1, 0)}
FRAMES, SIZE, DIGIT = 8, 32, 18
# Pixels per frame: a digit goes about a quarter to a third of the frame, and never meets a border.
SPEEDS = (1.2, 1.8)


def caption(digit: int, way: str) -> str:
    return f"a {WORDS[digit]} moves {way}"


def all_captions() -> list[str]:
    return [caption(digit, way) for digit in range(10) for way in WAYS]


def sprites() -> Tensor:
    """One handwriting of each digit, (10, DIGIT, DIGIT) in [0, 1]: the first ten pictures of the collection."""
    digits = MovingDigits(data.ClipSpec(1, (SIZE, SIZE)), num_digits=1, digit_size=DIGIT, handwritings=10)
    order = np.argsort(digits.targets)
    assert digits.targets[order].tolist() == list(range(10))
    return torch.from_numpy(digits.sprites[order])


def clip(sprite: Tensor, way: str, draw: data.Draw) -> Tensor:
    """uint8 (1, FRAMES, SIZE, SIZE): the digit on a straight way that lies within the frame."""
    free = SIZE - DIGIT
    speed = SPEEDS[0] + (SPEEDS[1] - SPEEDS[0]) * draw.uniform()
    length = speed * (FRAMES - 1)
    frames = torch.zeros(FRAMES, SIZE, SIZE)
    starts = []
    for step in WAYS[way]:
        # Along the way the start leaves room for its length, across it is anywhere.
        room = free - length if step else free
        starts.append(draw.uniform() * room + (length if step < 0 else 0))
    for number, frame in enumerate(frames):
        place = [start + step * speed * number for start, step in zip(starts, WAYS[way])]
        frame.copy_(_shifted(sprite, *place))
    return (frames * 255 + 0.5).to(torch.uint8).unsqueeze(0)


def _shifted(sprite: Tensor, top: float, left: float) -> Tensor:
    """A frame with the sprite at a fractional place, mixed bilinearly of the whole ones around it."""
    frame = torch.zeros(SIZE, SIZE)
    row, column = int(top), int(left)
    padded = torch.nn.functional.pad(sprite, (1, 1, 1, 1))
    down, right = top - row, left - column
    mixed = (1 - down) * padded[1:] + down * padded[:-1]
    mixed = (1 - right) * mixed[:, 1:] + right * mixed[:, :-1]
    target = frame[row : row + DIGIT + 1, column : column + DIGIT + 1]
    target.copy_(mixed[: target.shape[0], : target.shape[1]])
    return frame


def write_clips(folder: Path, count: int, seed: int) -> None:
    """`count` clips that go through all captions in turn, as lossless H.264, and captions.csv."""
    folder.mkdir(parents=True, exist_ok=True)
    lines, pictures, ways = ["file,caption"], sprites(), list(WAYS)
    for number in range(count):
        digit, way = number // len(ways) % 10, ways[number % len(ways)]
        video = clip(pictures[digit], way, data.Draw(seed, 0, number, stream=0))
        name = f"clip_{number:05d}.mp4"
        if not (folder / name).is_file():
            data.write_video(video, folder / name, fps=8, quality=0)
        lines.append(f"{name},{caption(digit, way)}")
    (folder / "captions.csv").write_text("\n".join(lines) + "\n")


def read_clips(folder: Path) -> Tensor:
    """All clips, uint8 (N, 3, FRAMES, SIZE, SIZE)."""
    return torch.stack([data.decode(path, layout="CTHW").frames for path in data.find_videos(folder)])
