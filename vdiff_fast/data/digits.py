"""Handwritten digits that bounce in a frame: endless labelled videos without a download."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from vdiff_fast.data.draw import Draw
from vdiff_fast.data.sampler import ClipKey
from vdiff_fast.data.transforms import ClipSpec


class MovingDigits(Dataset):
    """Clips of digits (scikit-learn's 1797 of 8x8 pixels, enlarged) that move straight and bounce off the borders.

    Position at frame t along one axis: the triangle wave of p + v t over the free range, exact for every t and rendered
    at subpixel positions; overlapping digits take the brighter pixel. Item i is a pure function of (`spec.seed`, i):
    the data set is finite and fixed, of `length` clips. After Srivastava et al., "Unsupervised Learning of Video
    Representations using LSTMs" (arXiv 1502.04681), who moved MNIST digits.

    `label`: the digits in rising order, read as a number (0 .. 10**num_digits - 1). `digit_size` is half the shorter
    side if not given; `speed` is the range of pixels per frame, by default 1/32 to 1/8 of the shorter side. A `stride`
    makes them faster; with `strides` a clip draws one, which its item names. `handwritings` limits the digits to the
    first so many pictures, a set that a small model can learn by heart: `sprites` (N, digit_size, digit_size) in [0, 1]
    of the digits `targets` (N,). Flips and crops do not apply.
    """

    clip_keys = True

    def __init__(
        self, spec: ClipSpec, *, num_digits: int = 2, digit_size: int | None = None,
        speed: tuple[float, float] | None = None, handwritings: int | None = None, length: int = 10_000,
        labels: bool = True,
    ) -> None:  # fmt: skip
        try:
            from sklearn.datasets import load_digits
        except ImportError as error:
            raise ImportError("moving-digits takes its digits from scikit-learn: pip install scikit-learn") from error
        shorter = min(spec.size)
        self.digit_size = max(1, shorter // 2) if digit_size is None else digit_size
        if not 1 <= self.digit_size <= shorter:
            raise ValueError(f"digit_size must be in [1, {shorter}] for frames of {spec.size}, got {digit_size}")
        if num_digits < 1 or length < 1:
            raise ValueError(f"need at least one digit and one clip, got {num_digits} digits, {length} clips")
        self.spec, self.num_digits, self.length, self.labels = spec, num_digits, length, labels
        self.speed = (shorter / 32, shorter / 8) if speed is None else speed
        if not 0 <= self.speed[0] <= self.speed[1]:
            raise ValueError(f"speed must be the lowest and the highest, in pixels per frame, got {self.speed}")
        images, targets = load_digits(return_X_y=True)
        if handwritings is not None and not 1 <= handwritings <= len(images):
            raise ValueError(f"handwritings must be in [1, {len(images)}], the digits there are, got {handwritings}")
        images, targets = images[:handwritings], targets[:handwritings]
        self.sprites = _enlarge(images.reshape(-1, 8, 8), self.digit_size)
        self.targets = targets

    @property
    def num_classes(self) -> int | None:
        """Number of labels, None if items carry none."""
        return 10**self.num_digits if self.labels else None

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, key: int | ClipKey) -> dict[str, Any]:
        index = range(self.length)[key[1] if isinstance(key, tuple) else key]
        draw = Draw(self.spec.seed, 0, index, stream=2)
        frames = np.zeros((self.spec.frames, *self.spec.size), dtype=np.float32)
        chosen = [draw.integer(len(self.sprites)) for _ in range(self.num_digits)]
        stride = self.spec.draw_stride(draw)
        for sprite in chosen:
            for frame, (top, left) in zip(frames, self._path(draw, stride)):
                _stamp(frame, self.sprites[sprite], top, left)
        gray = torch.from_numpy((frames * 255.0 + 0.5).astype(np.uint8))
        video = gray.unsqueeze(-1).repeat(1, 1, 1, self.spec.channels).permute(3, 0, 1, 2)
        item = {"video": video, "file": f"moving-digits/{index}", "index": index, "stride": stride}
        if not self.labels:
            return item
        label = int("".join(str(digit) for digit in sorted(int(self.targets[s]) for s in chosen)))
        return item | {"label": label}

    def _path(self, draw: Draw, stride: int) -> np.ndarray:
        """(T, 2) of the sprite's top-left corner."""
        low, high = self.speed
        velocity = low + (high - low) * draw.uniform()
        angle = 2.0 * np.pi * draw.uniform()
        steps = self.spec.window(0, stride)
        path = np.empty((self.spec.frames, 2))
        for axis, direction in enumerate((np.sin(angle), np.cos(angle))):
            free = self.spec.size[axis] - self.digit_size
            travelled = free * draw.uniform() + velocity * direction * steps
            # |((x + L) mod 2L) - L| runs from 0 to L and back.
            path[:, axis] = np.abs((travelled + free) % (2 * free) - free) if free else 0.0
        return path


def _enlarge(images: np.ndarray, size: int) -> np.ndarray:
    """(N, 8, 8) of 0..16 -> float32 (N, size, size) in [0, 1], smooth, dark rims kept dark."""
    pictures = torch.from_numpy(images).float().div(16.0).unsqueeze(1)
    scaled = torch.nn.functional.interpolate(pictures, (size, size), mode="bicubic", antialias=True)
    return scaled.clamp(0.0, 1.0).squeeze(1).numpy()


def _stamp(frame: np.ndarray, sprite: np.ndarray, top: float, left: float) -> None:
    """Draw at a fractional position, as a bilinear mix of the four whole ones around it; the brighter pixel stays."""
    row, column = int(np.floor(top)), int(np.floor(left))
    down, right = top - row, left - column
    size = sprite.shape[0]
    moved = np.zeros((size + 1, size + 1), dtype=np.float32)
    for dy, wy in ((0, 1.0 - down), (1, down)):
        for dx, wx in ((0, 1.0 - right), (1, right)):
            moved[dy : dy + size, dx : dx + size] += wy * wx * sprite
    target = frame[row : row + size + 1, column : column + size + 1]
    np.maximum(target, moved[: target.shape[0], : target.shape[1]], out=target)
