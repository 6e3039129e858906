"""The bookkeeping of diffusion over diffusion, over every clip size, depth and length."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vdiff_fast.diffusion import LongVideoPlan, long_video_plan


def test_the_papers_plan() -> None:
    plan = long_video_plan(clip=16, levels=3)
    assert (plan.frames, plan.clips, plan.rounds) == (3376, 241, 3)
    assert [plan.clips_of(level) for level in range(3)] == [1, 15, 225]
    assert str(plan) == "3376 frames: 3 levels of 16-frame clips, 241 clips in 3 rounds"


@st.composite
def plans(draw: Any) -> LongVideoPlan:
    clip = draw(st.integers(3, 9))
    levels = draw(st.integers(1, 4 if clip < 7 else 3))
    length = draw(st.none() | st.integers(1, (clip - 1) ** levels + 1))
    return long_video_plan(clip, levels, length=length)


@settings(deadline=None, max_examples=60)
@given(plans())
def test_every_wanted_frame_is_made_once_and_known_frames_are_there_before(plan: LongVideoPlan) -> None:
    made: set[int] = set()
    for level in range(plan.levels):
        segments = list(plan.segments(level))
        assert len(segments) == plan.clips_of(level)
        new: list[int] = []
        for i, segment in enumerate(segments):
            assert (segment.level, segment.index, len(segment.frames)) == (level, i, plan.clip)
            given_frames = [segment.frames[k] for k in segment.known]
            assert set(given_frames) <= made  # its ends come from the level above
            new += [frame for k, frame in enumerate(segment.frames) if k not in segment.known]
            assert segment.frames[-1] < plan.full_frames
        for a, b in pairwise(segments):
            assert a.frames[-1] == b.frames[0]
        assert len(new) == len(set(new))
        assert not made & set(new)
        made |= set(new)
    assert made >= set(range(plan.frames))
    assert plan.clips == sum(len(list(plan.segments(level))) for level in range(plan.levels))


@settings(deadline=None, max_examples=60)
@given(plans())
def test_no_clip_is_for_nothing(plan: LongVideoPlan) -> None:
    """A cut plan has the levels of the whole one, without the clips that start behind its end."""
    for level in range(1, plan.levels):
        assert all(segment.frames[0] < max(plan.frames - 1, 1) for segment in plan.segments(level))


@given(st.integers(3, 20), st.integers(1, 5000))
def test_fewest_levels(clip: int, length: int) -> None:
    levels = LongVideoPlan.levels_for(clip, length)
    assert long_video_plan(clip, levels, length=length).frames == length
    assert levels == 1 or (clip - 1) ** (levels - 1) + 1 < length


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda: long_video_plan(2, 3), ValueError, "clip must be at least 3, got 2"),
        (lambda: long_video_plan(16, 0), ValueError, "levels must be at least 1, got 0"),
        (lambda: long_video_plan(16.0, 2), TypeError, "clip must be an int, got 16.0"),  # type: ignore[arg-type]
        (lambda: long_video_plan(16, 2, length=300), ValueError, r"within \[1, 226\].*levels=3 fits"),
        (lambda: long_video_plan(16, 2, length=0), ValueError, "got 0"),
        (lambda: long_video_plan(16, 2, length="9"), TypeError, "length must be an int or None"),  # type: ignore[arg-type]
        (lambda: long_video_plan(16, 2).stride(2), ValueError, "level 2 is not within the plan's 2 levels"),
    ],
)
def test_plans_that_cannot_be_say_what_would_work(call: Any, error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        call()
