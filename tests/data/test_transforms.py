"""One crop, flip and size for a clip; ranges that are recognised."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from vdiff_fast.data import ClipSpec, Draw, ShortVideoError, ValueRangeError, check_range, to_unit_range
from vdiff_fast.data.transforms import Placement, choose_placement, place, resize, resize_frame, resized_size, to_gray

SIDE = st.integers(1, 2000)


@given(SIDE, SIDE, st.tuples(st.integers(1, 300), st.integers(1, 300)))
def test_resized_size_keeps_the_aspect(height: int, width: int, size: tuple[int, int]) -> None:
    cover = resized_size(height, width, size, "cover")
    assert cover[0] >= size[0]
    assert cover[1] >= size[1]
    assert cover[0] == size[0] or cover[1] == size[1]
    contain = resized_size(height, width, size, "contain")
    assert contain[0] <= size[0]
    assert contain[1] <= size[1]
    assert contain[0] == size[0] or contain[1] == size[1]
    scale = max(size[0] / height, size[1] / width)
    assert abs(cover[0] - scale * height) <= 0.5 + 1e-6
    assert abs(cover[1] - scale * width) <= 0.5 + 1e-6
    assert resized_size(height, width, size, "stretch") == size


def test_known_sizes() -> None:
    assert resized_size(720, 1280, (32, 32), "cover") == (32, 57)
    assert resized_size(1280, 720, (32, 32), "cover") == (57, 32)
    assert resized_size(720, 1280, (32, 32), "contain") == (18, 32)
    assert resized_size(240, 320, (60, 80), "cover") == (60, 80)


def test_resize_is_antialiased_and_equals_float() -> None:
    """A one-pixel checkerboard becomes grey; uint8 is within one level of the float computation."""
    board = (torch.arange(64)[:, None] + torch.arange(96)[None]) % 2 * 255
    video = board.to(torch.uint8).expand(3, 2, 64, 96)
    small = resize(video, (16, 24))
    assert small.shape == (3, 2, 16, 24)
    assert (small.int() - 128).abs().max() < 6
    noise = torch.randint(0, 256, (3, 4, 64, 96), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    exact = F.interpolate(noise.transpose(0, 1).double(), (20, 33), mode="bicubic", antialias=True).transpose(0, 1)
    assert (resize(noise, (20, 33)).double() - exact.clamp(0, 255)).abs().max() <= 1.5
    assert resize(noise, (64, 96)) is noise


def test_resize_frame_equals_resize() -> None:
    frames = np.random.default_rng(0).integers(0, 256, (2, 40, 50, 3), dtype=np.uint8)
    clip = torch.from_numpy(frames).permute(3, 0, 1, 2)
    together = resize(clip, (16, 20)).permute(1, 2, 3, 0).numpy()
    assert np.array_equal(np.stack([resize_frame(f, (16, 20)) for f in frames]), together)
    gray = np.stack([resize_frame(f, (16, 20), channels=1) for f in frames])
    assert gray.shape == (2, 16, 20, 1)
    assert np.abs(gray[..., 0] - together @ np.array([0.299, 0.587, 0.114])).max() <= 0.51
    assert to_gray(clip[:1]).shape[0] == 1


def test_placement_is_one_for_all_frames() -> None:
    """The same still picture in every frame stays the same in every frame, whatever was drawn."""
    spec = ClipSpec(frames=5, size=(16, 16), random_crop=True, flip=0.5)
    still = torch.randint(0, 256, (3, 1, 16, 40), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    still = still.expand(3, 5, 16, 40)
    seen = set()
    for index in range(60):
        placement = choose_placement(Draw(0, 0, index), (16, 40), spec)
        seen.add(placement)
        clip = place(still, spec.size, placement)
        assert clip.shape == (3, 5, 16, 16)
        assert all(torch.equal(clip[:, 0], clip[:, t]) for t in range(1, 5))
        expected = still[..., placement.left : placement.left + 16]
        assert torch.equal(clip, expected.flip(-1) if placement.flip else expected)
    assert len({p.left for p in seen}) > 15
    assert {p.left for p in seen} <= set(range(25))
    assert {p.flip for p in seen} == {False, True}


def test_central_crop_and_padding() -> None:
    spec = ClipSpec(frames=1, size=(4, 4))
    assert choose_placement(Draw(0, 0, 0), (4, 9), spec) == Placement(0, 2, False)
    video = torch.full((3, 1, 2, 4), 9, dtype=torch.uint8)
    padded = place(
        video, (4, 4), choose_placement(Draw(0, 0, 0), (2, 4), ClipSpec(frames=1, size=(4, 4), fit="contain"))
    )
    assert padded[0, 0].tolist() == [[0] * 4, [9] * 4, [9] * 4, [0] * 4]
    assert (
        place(video, (5, 5), Placement(-1, 0, False))[0, 0].tolist() == [[0] * 5] + [[9] * 4 + [0]] * 2 + [[0] * 5] * 2
    )


def test_windows() -> None:
    spec = ClipSpec(frames=4, size=(8, 8), stride=3)
    assert spec.span == 10
    assert spec.window(5).tolist() == [5, 8, 11, 14]
    spec.require("a.mp4", 10)
    with pytest.raises(ShortVideoError, match=r"a\.mp4: 9 frames < 4 needed \(one in 3 of 10\); use fewer frames"):
        spec.require("a.mp4", 9)
    with pytest.raises(ShortVideoError, match=r"9 frames at 8 fps < 16 needed; use"):
        ClipSpec(frames=16, size=(8, 8), fps=8).require("a.mp4", 9)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"frames": 0}, "frames must be at least 1, got 0"),
        ({"stride": 0}, "stride must be at least 1"),
        ({"size": (0, 8)}, "size must be at least 1"),
        ({"channels": 4}, "channels must be 3"),
        ({"fit": "crop"}, "fit must be one of cover, contain, stretch, got 'crop'"),
        ({"flip": 2.0}, "flip is a probability"),
        ({"fps": -1.0}, "fps must be positive"),
    ],
)
def test_specs_that_make_no_sense(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ClipSpec(**({"frames": 4, "size": (8, 8)} | changes))


def test_unit_range() -> None:
    values = torch.arange(256, dtype=torch.uint8)
    exact = values.double() / 127.5 - 1
    assert (to_unit_range(values).double() - exact).abs().max() < 1e-7
    assert to_unit_range(values, dtype=torch.bfloat16).dtype == torch.bfloat16
    batch = torch.zeros(2, 4, 8, 8, 3, dtype=torch.uint8).permute(0, 4, 1, 2, 3)
    assert to_unit_range(batch).stride() == batch.stride()
    with pytest.raises(TypeError, match=r"takes uint8 frames, got torch\.float32"):
        to_unit_range(torch.zeros(3))


def test_ranges_are_recognised() -> None:
    unit = torch.rand(2, 3, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    check_range(unit * 2 - 1)
    check_range((unit * 2 - 1).bfloat16())
    for batch, message in (
        ((unit * 255).byte(), r"uint8 in \[0, 255\]"),
        (unit * 255, r"that is \[0, 255\]; models expect \[-1, 1\]: divide by 127\.5"),
        (unit, r"that is \[0, 1\]; models expect \[-1, 1\]: multiply by 2"),
        ((unit - 0.45) / 0.225, "do not normalise by mean and deviation"),
        (unit * float("nan"), "NaN or Inf"),
        (unit[:0], "empty"),
    ):
        with pytest.raises(ValueRangeError, match=message):
            check_range(batch)
