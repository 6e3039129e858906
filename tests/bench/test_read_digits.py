"""The reader of digits tells right from wrong."""

from __future__ import annotations

import torch

from benchmarks.read_digits import read
from vdiff_fast.data import to_unit_range
from vdiff_fast.data.digits import MovingDigits
from vdiff_fast.data.transforms import ClipSpec


def test_it_reads_training_clips_and_not_noise() -> None:
    data = MovingDigits(ClipSpec(frames=4, size=(32, 32), seed=0), num_digits=1, digit_size=20, handwritings=30)
    sprites, targets = torch.from_numpy(data.sprites), torch.from_numpy(data.targets)
    items = [data[i] for i in range(12)]
    videos = to_unit_range(torch.stack([item["video"] for item in items]))
    digits, likeness = read(videos, sprites, targets)
    assert (digits == torch.tensor([item["label"] for item in items])[:, None]).all()
    assert likeness.min() > 0.9
    noise = torch.rand(12, 1, 4, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    assert read(noise, sprites, targets)[1].max() < 0.5
    likeness_mirrored = read(videos.flip(-1), sprites, targets)[1]
    assert (likeness_mirrored < likeness).double().mean() > 0.9
