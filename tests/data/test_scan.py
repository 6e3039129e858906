"""What a file declares against what it gives; damage that raises nothing; time stamps."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from vdiff_fast.data import (
    CorruptVideoError,
    EmptyVideoError,
    Tolerance,
    TruncatedVideoError,
    UnreadableVideoError,
    scan,
)

from .conftest import declare_frames, encode, flip_bytes, noise, numbered, truncate


def test_sound_clips(clips: Path) -> None:
    for name, size, frames, fps in (
        ("bigbuckbunny.mp4", (1280, 720), 132, 25.0),
        ("bikes.mp4", (640, 272), 250, 25.0),
        # Stored as 176x144 with pixels of 128:117.
        ("carphone_pristine.mp4", (193, 144), 120, 30000 / 1001),
    ):
        video = scan(clips / name)
        assert (video.width, video.height, video.decoded, video.declared) == (*size, frames, frames)
        assert video.fps == pytest.approx(fps, rel=1e-9)
        assert video.problem() is None
        assert not video.variable
        assert video.corrupt == video.missing == 0
        assert np.array_equal(video.grid(), np.arange(frames))


@pytest.mark.parametrize("codec", ["mpeg4", "msmpeg4", "mjpeg"])
def test_a_truncated_avi_is_told_by_its_count(tmp_path: Path, codec: str) -> None:
    pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
    whole = encode(tmp_path / "whole.avi", noise(30), codec=codec, pix_fmt=pix_fmt)
    video = scan(truncate(whole, tmp_path / "clip_17.avi"))
    assert video.declared == 30
    assert 5 < video.decoded < 25
    assert isinstance(video.problem(), TruncatedVideoError)
    assert f"clip_17.avi: decoded {video.decoded} of 30 declared frames" in str(video.problem())
    assert video.problem(Tolerance(max_missing=1.0, max_corrupt=1.0)) is None
    assert scan(whole).problem() is None


def test_truncated_where_the_header_comes_first(tmp_path: Path) -> None:
    """An MP4 with its index in front opens however short it is; Matroska declares a duration instead of a count."""
    mp4 = encode(tmp_path / "a.mp4", noise(30), codec="libx264", container_options={"movflags": "+faststart"})
    mkv = encode(tmp_path / "a.mkv", noise(30), codec="libx264")
    for whole in (mp4, mkv):
        assert scan(whole).problem() is None
        video = scan(truncate(whole, tmp_path / f"cut{whole.suffix}"))
        problem = video.problem(Tolerance(max_corrupt=1.0))
        assert isinstance(problem, TruncatedVideoError), (whole, video)
        assert abs(video.missing - (30 - video.decoded)) <= 1
    assert "it ends at" in str(problem)


def test_a_truncated_gif_lacks_its_end_mark(tmp_path: Path) -> None:
    """FFmpeg counts a GIF's frames by reading it, so count and header agree however short it is."""
    whole = encode(tmp_path / "a.gif", noise(30), codec="gif", pix_fmt="rgb8")
    assert scan(whole).problem() is None
    whole.write_bytes(whole.read_bytes() + b"\0\0")
    assert scan(whole).problem() is None
    video = scan(truncate(whole, tmp_path / "cut.gif"))
    assert video.decoded < 20
    assert isinstance(video.problem(), TruncatedVideoError)
    assert str(video.problem()).endswith("; the file ends without its end mark")
    assert video.problem(Tolerance(1.0, 1.0)) is None


def test_sound_that_outlasts_the_pictures_is_no_damage(tmp_path: Path) -> None:
    import av

    with av.open(str(tmp_path / "a.mkv"), "w") as container:
        video = container.add_stream("mpeg4", rate=25)
        video.width, video.height, video.pix_fmt = 48, 32, "yuv420p"
        audio = container.add_stream("pcm_s16le", rate=8000)
        for i, pixels in enumerate(numbered(20)):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = i, Fraction(1, 25)
            container.mux(video.encode(frame))
        container.mux(video.encode())
        for i in range(40):
            sound = av.AudioFrame.from_ndarray(np.zeros((1, 800), dtype=np.int16), format="s16", layout="mono")
            sound.pts, sound.rate = i * 800, 8000
            container.mux(audio.encode(sound))
        container.mux(audio.encode())
    scanned = scan(tmp_path / "a.mkv")
    assert scanned.decoded == 20
    assert scanned.problem() is None


def test_flipped_bytes_are_flagged_though_nothing_is_raised(clips: Path, tmp_path: Path) -> None:
    damaged = flip_bytes(clips / "bigbuckbunny.mp4", tmp_path / "b.mp4", 200, margin=5000)
    video = scan(damaged)
    assert video.declared == 132
    assert video.decoded > 125
    assert 10 < video.corrupt < 125
    problem = video.problem()
    assert isinstance(problem, CorruptVideoError)
    found = f"b.mp4: decoded {video.decoded} of 132 declared frames ({video.corrupt} flagged corrupt)"
    assert str(problem).startswith(found)
    assert video.problem(Tolerance(max_corrupt=0.95)) is None


@pytest.mark.parametrize("content", [b"", b"hello, world\n" * 400, b"\0" * 5000, b"RIFF\0\0\0\0AVI "])
def test_what_is_no_video(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "clip.mp4"
    path.write_bytes(content)
    with pytest.raises(UnreadableVideoError, match=r"^clip\.mp4: "):
        scan(path)


def test_text_that_ffmpeg_would_play(tmp_path: Path) -> None:
    path = tmp_path / "art.txt"
    path.write_text("line\n" * 500)
    with pytest.raises(UnreadableVideoError, match="text file"):
        scan(path)


def test_moov_cut_off(tmp_path: Path) -> None:
    whole = encode(tmp_path / "a.mp4", numbered(30))
    with pytest.raises(UnreadableVideoError, match=r"cut\.mp4: not a video that FFmpeg can read"):
        scan(truncate(whole, tmp_path / "cut.mp4"))


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        scan(tmp_path / "none.mp4")


def test_sound_only_and_no_frames(tmp_path: Path) -> None:
    import av

    with av.open(str(tmp_path / "sound.mkv"), "w") as container:
        audio = container.add_stream("pcm_s16le", rate=8000)
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 800), dtype=np.int16), format="s16", layout="mono")
        sound.pts, sound.rate = 0, 8000
        container.mux(audio.encode(sound))
        container.mux(audio.encode())
    with pytest.raises(UnreadableVideoError, match="no video stream"):
        scan(tmp_path / "sound.mkv")

    with av.open(str(tmp_path / "none.avi"), "w") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.width, stream.height, stream.pix_fmt = 48, 32, "yuv420p"
        container.start_encoding()
    with pytest.raises((EmptyVideoError, UnreadableVideoError), match=r"none\.avi"):
        scan(tmp_path / "none.avi")


def test_one_frame(tmp_path: Path) -> None:
    video = scan(encode(tmp_path / "one.mp4", numbered(1)))
    assert video.decoded == 1
    assert video.problem() is None
    assert video.grid().tolist() == [0]
    assert video.grid(8).tolist() == [0]


def test_variable_frame_rate_follows_time_stamps(tmp_path: Path) -> None:
    """Frames at 0, 40, 80 ms, then a pause to 400 ms: at 25 fps the third is on display from 80 to 360 ms."""
    stamps = [0, 40, 80, 400, 440, 480]
    path = encode(tmp_path / "v.mkv", numbered(6), stamps=stamps, time_base=Fraction(1, 1000))
    video = scan(path)
    assert video.variable
    assert np.allclose(video.times, np.array(stamps) / 1000)
    assert video.fps == pytest.approx(25.0)
    assert video.grid().tolist() == [0, 1, 2, 2, 2, 2, 2, 2, 2, 2, 3, 4, 5]
    assert video.grid(12.5).tolist() == [0, 2, 2, 2, 2, 3]


def test_rounded_stamps_are_a_constant_rate(tmp_path: Path) -> None:
    """Matroska stores milliseconds: 33, 67, 100 is 30 fps and every frame comes once."""
    video = scan(encode(tmp_path / "r.mkv", numbered(30), rate=30))
    assert len({round(d, 3) for d in np.diff(video.times)}) > 1
    assert not video.variable
    assert np.array_equal(video.grid(), np.arange(30))
    assert np.array_equal(video.grid(30), np.arange(30))
    assert np.array_equal(video.grid(15), np.arange(0, 30, 2))
    assert np.array_equal(video.grid(60), np.repeat(np.arange(30), 2))


def test_a_rate_that_lies(tmp_path: Path) -> None:
    """The header says 50 fps, the frames are 100 ms apart."""
    stamps = [100 * i for i in range(12)]
    video = scan(encode(tmp_path / "l.mkv", numbered(12), rate=50, stamps=stamps, time_base=Fraction(1, 1000)))
    assert video.nominal_fps != pytest.approx(10.0)
    assert video.fps == pytest.approx(10.0)
    assert video.duration == pytest.approx(1.2)
    assert len(video.grid(10)) == 12


def test_a_count_that_lies_but_time_is_covered(tmp_path: Path) -> None:
    """An AVI that leaves repeated frames out declares more than it stores, and is whole."""
    stamps = [0, 1, 5, 9, 10, 20, 21, 29]
    video = scan(encode(tmp_path / "s.avi", numbered(8), stamps=stamps, rate=10))
    assert video.declared == 30
    assert video.decoded == 8
    assert video.missing == 0
    assert video.problem() is None
    assert video.grid(10).tolist() == [sum(s <= k for s in stamps) - 1 for k in range(len(video.grid(10)))]


def test_a_patched_frame_count(tmp_path: Path) -> None:
    """Twice the true count in both AVI headers: by its own account the file is half."""
    path = declare_frames(encode(tmp_path / "p.avi", numbered(20)), 20, 40)
    video = scan(path)
    assert (video.declared, video.decoded) == (40, 20)
    assert str(video.problem()) == "p.avi: decoded 20 of 40 declared frames"


def test_one_frame_less_than_declared_is_tolerated(tmp_path: Path) -> None:
    path = declare_frames(encode(tmp_path / "p.avi", numbered(20)), 20, 21)
    assert scan(path).problem() is None


def test_odd_sizes_pixel_aspect_and_grid_arguments(tmp_path: Path) -> None:
    video = scan(encode(tmp_path / "odd.avi", numbered(4, 31, 47), codec="ffv1", pix_fmt="bgr0"))
    assert (video.width, video.height) == (47, 31)
    wide = scan(encode(tmp_path / "wide.mkv", numbered(4), codec="libx264", aspect=Fraction(2)))
    assert (wide.width, wide.height) == (96, 32)
    with pytest.raises(ValueError, match="fps must be positive, got 0"):
        wide.grid(0)
