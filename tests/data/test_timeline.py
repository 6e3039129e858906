"""Time stamps that cannot be true: no frame stands for hours, none is lost, none is invented."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vdiff_fast.data import ClipSpec, VideoFolder, check_video, decode, read_frames, scan
from vdiff_fast.data.timeline import time_line

from .conftest import encode, numbered, numbers

MILLISECOND = Fraction(1, 1000)
EVEN = [40 * i for i in range(50)]
HOUR = 3_600_000
# Forward, back, twice, to the first stamp again, one stamp alone, hours apart, past 33 bits of 90 kHz.
JUMPS = {
    "ten hours": EVEN[:25] + [10 * HOUR + p for p in EVEN[:25]],
    "a minute": EVEN[:25] + [60_000 + p for p in EVEN[25:]],
    "back to the start": EVEN[:25] + EVEN[:25],
    "back by an hour": [HOUR + p for p in EVEN[:25]] + EVEN[:25],
    "twice": [*EVEN[:10], *(HOUR + p for p in EVEN[10:20]), *(5 * HOUR + p for p in EVEN[20:])],
    "one stamp alone": [*EVEN[:25], 7 * HOUR, *EVEN[26:]],
    "at the first frame": [0, *(HOUR + p for p in EVEN[1:])],
    "at the last frame": [*EVEN[:-1], HOUR],
    "the clock wraps": [*EVEN[:25], *(p - 95_443_718 for p in EVEN[25:])],
    "damaged": [*EVEN[:25], (1 << 63) - 1, -(1 << 63), *EVEN[27:]],
}


@pytest.mark.parametrize("name", JUMPS)
def test_a_jump_is_closed(name: str) -> None:
    line = time_line(JUMPS[name], MILLISECOND, Fraction(25))
    assert np.allclose(line.times, np.array(EVEN) / 1000)
    assert "jump" in line.note
    assert "gaps are closed" in line.note


def test_pauses_and_slow_videos_stay() -> None:
    for stamps in ([0, 40, 80, 1900, 1940], [0, 3000, 6000, 26000, 29000], [0, 1, 5, 9, 10, 20, 21, 29]):
        line = time_line(stamps, MILLISECOND if stamps[1] > 1 else Fraction(1, 10), None)
        assert np.allclose(np.diff(line.times), np.diff(stamps) * (0.001 if stamps[1] > 1 else 0.1))
        assert (line.note, line.closed) == ("", 0.0)


def test_stamps_of_no_use_give_way_to_the_rate() -> None:
    for stamps, note in (
        ([None] * 10, "no time stamps"),
        ([5] * 10, "stand still"),
        ([0, 40, 40, 40, 80, 80, 120, 120, 120, 120], "stand still|repeated"),
        ([HOUR * i for i in range(10)], "too far apart"),
    ):
        line = time_line(stamps, MILLISECOND, Fraction(10))
        assert np.allclose(line.times, np.arange(10) / 10)
        assert not line.in_order
        assert any(part in line.note for part in note.split("|"))
    for rate in (None, Fraction(0), Fraction(1, 3600), Fraction(10**9)):
        assert np.allclose(time_line([None] * 3, MILLISECOND, rate).times, np.arange(3) / 25)


@settings(deadline=None, max_examples=300)
@given(
    st.lists(st.none() | st.integers(-(1 << 63), (1 << 63) - 1) | st.integers(0, 5000), min_size=1, max_size=40),
    st.sampled_from([Fraction(1, 90_000), MILLISECOND, Fraction(1, 25), Fraction(1), Fraction(1, 10**9)]),
    st.sampled_from([None, Fraction(25), Fraction(1, 100_000), Fraction(10**7)]),
)  # fmt: skip
def test_whatever_the_stamps_every_gap_is_bounded(stamps: list, time_base: Fraction, rate: Fraction | None) -> None:
    line = time_line(stamps, time_base, rate)
    assert len(line.times) == len(line.pts) == len(stamps)
    assert line.times[0] == 0
    assert np.isfinite(line.times).all()
    steps = np.diff(line.times)
    assert (steps >= 0).all()
    # Two seconds, or eight intervals of at most ten, and what sorting puts between two stamps.
    assert line.times[-1] <= 80.0 * max(1, len(stamps) - 1) * (1 + 1e-9)
    if line.in_order:
        assert (np.diff(line.pts) > 0).all()


@pytest.mark.parametrize("name", ["ten hours", "twice", "at the first frame"])
def test_a_file_whose_clock_jumps_gives_its_frames_once(tmp_path: Path, name: str) -> None:
    (tmp_path / "d").mkdir()
    path = encode(tmp_path / "d/jump.mkv", numbered(32), stamps=JUMPS[name][:32], time_base=MILLISECOND)
    video = scan(path)
    assert len(video.grid()) == video.decoded == 32
    assert len(video.grid(8)) <= 12
    assert check_video(path).verdict == "warning"
    assert numbers(decode(path).frames.numpy()) == list(range(32))
    for i in range(5):
        encode(tmp_path / f"d/good{i}.mkv", numbered(32), stamps=EVEN[:32], time_base=MILLISECOND)
    data = VideoFolder(tmp_path / "d", ClipSpec(frames=8, size=(16, 16)))
    assert len(data) == 6 * 4
    assert all((data[i]["video"] != data[i]["video"][:, :1]).any() for i in range(len(data)))


def test_two_recordings_in_one_stream(tmp_path: Path) -> None:
    """A transport stream may be two, one after the other: the clock starts anew and every frame is there once."""
    parts = [encode(tmp_path / f"{i}.ts", numbered(32)[16 * i :][:16], codec="libx264") for i in (0, 1)]
    path = tmp_path / "both.ts"
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    video = scan(path)
    assert (video.decoded, video.problem()) == (32, None)
    assert np.allclose(np.diff(video.times), 0.04)
    assert numbers(decode(path).frames.numpy()) == list(range(32))
    assert numbers(read_frames(video, [20, 25])) == [20, 25]


def test_a_picture_that_stands_counts_once(tmp_path: Path) -> None:
    """Twelve frames, a pause of 1.8 s, twelve frames: at 25 fps 69 pictures, 24 different ones, 3 windows of 8."""
    stamps = [*EVEN[:12], *(EVEN[11] + 1800 + p for p in EVEN[:12])]
    path = encode(tmp_path / "p.mkv", numbered(24), stamps=stamps, time_base=MILLISECOND)
    assert len(scan(path).grid(25)) == 68
    data = VideoFolder([path], ClipSpec(frames=8, size=(16, 16), fps=25.0))
    assert len(data) == 3
    assert len(data._starts[0]) == 24 - 7
