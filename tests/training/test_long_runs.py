"""What a run must have been trained for before a long video is made from it."""

from __future__ import annotations

from pathlib import Path

import pytest

from vdiff_fast.diffusion import ConditionError, long_video_plan
from vdiff_fast.training.long_runs import (
    USES,
    require_roles,
    sampling_use,
    stride_note,
    strides_note,
    strides_of,
    time_scale_note,
)
from vdiff_fast.training.masks import Role

RUN = Path("runs/a")


@pytest.mark.parametrize(("clip", "levels"), [(8, 3), (4, 4), (16, 2), (3, 1)])
def test_strides_are_those_of_the_plan(clip: int, levels: int) -> None:
    plan = long_video_plan(clip, levels)
    assert strides_of(clip, levels) == [plan.stride(level) for level in reversed(range(levels))]


@pytest.mark.parametrize(
    ("levels", "strides", "first_frame"),
    [
        (3, [1, 7, 49], False),
        (3, [49, 1, 7, 7], False),  # order and how often do not matter
        (2, [2, 14], False),  # every second frame of the training videos, and so is the video
        (1, [5], False),
        (1, [5], True),
        (1, [1, 7, 49], True),  # one clip of neighbouring frames
    ],
)
def test_no_note_where_the_speed_is_that_of_training(levels: int, strides: list[int], first_frame: bool) -> None:
    assert time_scale_note(long_video_plan(8, levels), strides, first_frame) is None


@pytest.mark.parametrize(
    ("levels", "strides", "first_frame", "parts"),
    [
        (2, [1, 7, 49], False, ["[1, 7, 49] do not match 2 level(s) of 8-frame clips: [1, 7]", "7 times as fast"]),
        (2, [1, 7, 49], False, ["--levels 3 --length 50 keeps their speed"]),
        (1, [2, 14], False, ["7 times as fast", "--levels 2 --length 8"]),
        (2, [1], False, ["strides [1] do not match", "7 times slower", "train with --strides 1,7"]),
        (4, [1, 7, 49], False, ["7 times slower", "train with --strides 1,7,49,343"]),
        (2, [1, 4], False, ["[1, 4] do not match 2 level(s) of 8-frame clips: [1, 7]", "1.75 times slower"]),
        (3, [1, 49], False, ["[1, 7, 49]", "key frames alone move like those of the training videos"]),
        (3, [1, 7, 49], True, ["a known first frame was trained at 1 alone", "49 times slower", "--autoregressive"]),
    ],
)
def test_the_note_says_how_fast_and_what_to_do(
    levels: int, strides: list[int], first_frame: bool, parts: list[str]
) -> None:
    note = time_scale_note(long_video_plan(8, levels), strides, first_frame)
    assert note is not None
    for part in parts:
        assert part in note


def test_training_is_told_which_strides_fit() -> None:
    both: dict[Role, float] = {"global": 1, "local": 2}
    assert strides_note(8, [1, 4], both) == (
        "strides [1, 4] do not match clips of 8 frames for vdiff-fast long: [1, 7] do"
    )
    assert strides_note(8, [1, 7, 49], both) is None
    assert strides_note(8, [3], both) is None
    assert strides_note(8, [1, 4], {"global": 1, "prediction": 1, "local": 0}) is None


@pytest.mark.parametrize(
    ("masks", "needed"),
    [
        ({"global": 1, "local": 1}, ["global", "local"]),
        ({"prediction": 1}, ["first"]),
        ({"random": 0.5}, ["global", "local", "prediction"]),
    ],
)
def test_roles_serve_their_own_masks_and_those_they_draw_too(masks: dict[Role, float], needed: list[Role]) -> None:
    require_roles(RUN, masks, needed, "long")


@pytest.mark.parametrize(
    ("masks", "needed", "message"),
    [
        ({"first": 1}, ["prediction"], "--masks first; long needs prediction: train it with --masks first,prediction"),
        ({"global": 1, "local": 0}, ["global", "local"], "trained with --masks global; long needs global and local"),
        ({"local": 2, "inpaint": 1}, ["global"], "it can interpolate, sample --first-frame --last-frame, sample --box"),
    ],
)
def test_missing_roles_are_named(masks: dict[Role, float], needed: list[Role], message: str) -> None:
    with pytest.raises(ConditionError) as caught:
        require_roles(RUN, masks, needed, "long")
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("given", "roles"),
    [
        ((True, False, None, False), ("first",)),
        ((True, True, None, False), ("local",)),
        ((False, True, None, False), ("random",)),
        ((False, False, 1, False), ("first",)),
        ((False, False, 3, False), ("prediction",)),
        ((False, False, None, True), ("inpaint",)),
    ],
)
def test_what_is_known_asks_for_a_role(given: tuple[bool, bool, int | None, bool], roles: tuple[Role]) -> None:
    use = sampling_use(*given)
    assert use is not None
    assert USES[use] == roles


def test_a_clip_of_nothing_known_needs_no_role_and_has_the_largest_stride() -> None:
    assert sampling_use(False, False, None, False) is None
    assert stride_note([4]) is None
    note = stride_note([7, 1, 49])
    assert note is not None
    assert "49 of the smallest apart" in note
