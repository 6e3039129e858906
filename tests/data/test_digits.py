"""Digits that move, bounce, stay inside, and depend on (seed, index) alone."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch

from vdiff_fast.data import ClipKey, ClipSpec, MovingDigits

SPEC = ClipSpec(frames=24, size=(32, 40), seed=3)


def centres(video: torch.Tensor) -> np.ndarray:
    """(T, 2) centre of brightness."""
    weight = video[0].double().numpy()
    rows, columns = np.arange(weight.shape[1]), np.arange(weight.shape[2])
    total = weight.sum((1, 2))
    return np.stack([(weight.sum(2) @ rows) / total, (weight.sum(1) @ columns) / total], 1)


def test_items() -> None:
    data = MovingDigits(SPEC, length=50)
    item = data[7]
    assert item["video"].shape == (3, 24, 32, 40)
    assert item["video"].dtype == torch.uint8
    assert item["video"].max() > 200
    assert torch.equal(item["video"][0], item["video"][2])
    assert item["index"] == 7
    assert 0 <= item["label"] < data.num_classes == 100
    assert len(data) == 50
    with pytest.raises(IndexError):
        data[50]


def test_depends_on_seed_and_index_alone() -> None:
    data = MovingDigits(SPEC, length=50)
    assert torch.equal(data[7]["video"], pickle.loads(pickle.dumps(data))[ClipKey(5, 7)]["video"])
    assert not torch.equal(data[7]["video"], data[8]["video"])
    other = MovingDigits(ClipSpec(frames=24, size=(32, 40), seed=4), length=50)
    assert not torch.equal(data[7]["video"], other[7]["video"])


def test_one_digit_moves_straight_and_bounces_inside() -> None:
    data = MovingDigits(SPEC, num_digits=1, speed=(2.0, 3.0), length=40)
    bounced = 0
    for index in range(40):
        video = data[index]["video"]
        light = video[0].double().sum((1, 2))
        # Subpixel placement keeps the digit's light: it is never cut at a border.
        assert (light.max() - light.min()) / light.max() < 0.02
        step = np.diff(centres(video), axis=0)
        bounced += bool((np.sign(step[0]) * np.sign(step[-1]) < 0).any())
        assert np.abs(step).max() < 3.1
        speed = np.hypot(*step.T)
        straight = np.abs(np.diff(step, axis=0)).max(1) < 0.1
        # A bounce on either axis bends two of the 22 differences; there are at most seven.
        assert straight.sum() >= 8
        assert 1.9 < np.median(speed) < 3.1
    assert bounced > 20


def test_labels_name_the_digits() -> None:
    data = MovingDigits(ClipSpec(frames=1, size=(32, 40), seed=3), num_digits=1, length=300)
    labels = [data[i]["label"] for i in range(300)]
    assert set(labels) == set(range(10))
    # Zeros look alike and unlike ones: the mean picture of a class tells its members from the others.
    aligned = {digit: [] for digit in (0, 1)}
    for index, label in enumerate(labels):
        if label in aligned:
            frame = data[index]["video"][0, 0].float()
            rows, columns = torch.nonzero(frame.sum(1)).flatten(), torch.nonzero(frame.sum(0)).flatten()
            aligned[label].append(frame[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1])
    hole = {d: np.mean([float(f[len(f) // 2, f.shape[1] // 2]) for f in frames]) for d, frames in aligned.items()}
    assert hole[0] < 60 < 150 < hole[1]


def test_channels_stride_and_no_labels() -> None:
    gray = MovingDigits(ClipSpec(frames=6, size=(32, 40), seed=3, channels=1), length=5, labels=False)
    assert gray[0]["video"].shape == (1, 6, 32, 40)
    assert "label" not in gray[0]
    assert gray.num_classes is None
    fast = MovingDigits(ClipSpec(frames=6, size=(32, 40), seed=3, channels=1, stride=2), length=5)
    slow = MovingDigits(ClipSpec(frames=11, size=(32, 40), seed=3, channels=1), length=5)
    assert torch.equal(fast[2]["video"], slow[2]["video"][:, ::2])


def test_strides_are_drawn_per_clip_and_named() -> None:
    data = MovingDigits(ClipSpec(frames=6, size=(32, 40), seed=3, channels=1, strides=(1, 5, 5)), length=90)
    drawn = [data[i]["stride"] for i in range(90)]
    assert set(drawn) == {1, 5}
    assert 45 < drawn.count(5) < 75
    chosen = next(i for i in range(90) if drawn[i] == 5)
    slow = MovingDigits(ClipSpec(frames=26, size=(32, 40), seed=3, channels=1, strides=(1,)), length=90)
    # The same draws with another stride: the same path, seen less often.
    assert torch.equal(data[chosen]["video"], slow[chosen]["video"][:, ::5])


def test_few_handwritings_are_the_first_ones() -> None:
    data = MovingDigits(SPEC, num_digits=1, handwritings=10, length=60)
    assert {data[i]["label"] for i in range(60)} == set(range(10))
    assert len(data.sprites) == 10


def test_a_digit_as_large_as_the_frame_stands_still() -> None:
    video = MovingDigits(ClipSpec(frames=4, size=(16, 16)), num_digits=1, digit_size=16, length=1)[0]["video"]
    assert all(torch.equal(video[:, 0], video[:, t]) for t in range(4))


@pytest.mark.parametrize(
    "changes",
    [
        {"digit_size": 33}, {"digit_size": 0}, {"num_digits": 0}, {"length": 0}, {"speed": (2.0, 1.0)},
        {"handwritings": 0}, {"handwritings": 1798},
    ],
)  # fmt: skip
def test_arguments_out_of_range(changes: dict) -> None:
    with pytest.raises(ValueError, match=r"digit_size must be|at least one digit|speed must be|handwritings must be"):
        MovingDigits(SPEC, **changes)
