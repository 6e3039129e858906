"""Frames come out right: whole, by window after a seek, resampled, upright, without leaking."""

from __future__ import annotations

import dataclasses
import os
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch

from vdiff_fast.data import CorruptVideoError, Tolerance, TruncatedVideoError, decode, read_frames, scan

from .conftest import encode, flip_bytes, noise, numbered, numbers, truncate


@pytest.mark.parametrize(
    ("name", "codec", "pix_fmt"),
    [
        ("a.mp4", "libx264", "yuv420p"),
        ("a.mp4", "mpeg4", "yuv420p"),
        ("a.avi", "mpeg4", "yuv420p"),
        ("a.avi", "mjpeg", "yuvj444p"),
        ("a.mkv", "ffv1", "gray"),
        ("a.webm", "libvpx-vp9", "yuv420p"),
        ("a.gif", "gif", "rgb8"),
        ("a.mpg", "mpeg2video", "yuv420p"),
        ("a.mkv", "ffv1", "yuv420p10le"),
    ],
)
def test_every_container_gives_the_frames_that_went_in(tmp_path: Path, name: str, codec: str, pix_fmt: str) -> None:
    source = numbered(20) if codec != "gif" else np.repeat(numbered(20)[:, :, 24:25], 48, axis=2)
    path = encode(tmp_path / name, source, codec=codec, pix_fmt=pix_fmt)
    video = decode(path)
    assert video.frames.dtype == torch.uint8
    assert video.frames.shape == (20, 32, 48, 3)
    levels = 40 if codec == "gif" else 6
    assert np.abs(video.frames.numpy().astype(int) - source).mean() < levels
    if codec != "gif":
        assert numbers(video.frames.numpy()) == list(range(20))
        assert video.fps == pytest.approx(25.0, rel=1e-3)


def test_layouts_share_memory_order(tmp_path: Path) -> None:
    path = encode(tmp_path / "a.mp4", numbered(5))
    planar = decode(path, layout="CTHW").frames
    assert planar.shape == (3, 5, 32, 48)
    assert planar.permute(1, 2, 3, 0).is_contiguous()
    with pytest.raises(ValueError, match="layout must be"):
        decode(path, layout="HWC")  # type: ignore[arg-type]


def test_windows_equal_the_whole_after_seeks(clips: Path, tmp_path: Path) -> None:
    """Key frames apart by 12 or 250, B-frames, a container without seek: the same pixels as decoding from the start."""
    made = [
        encode(tmp_path / "g.gif", numbered(24), codec="gif", pix_fmt="rgb8"),
        encode(tmp_path / "b.mp4", numbered(30), codec="libx264", gop=6, options={"bf": "3"}),
        encode(tmp_path / "t.ts", numbered(30), codec="libx264", gop=6, options={"bf": "3"}),
    ]
    rng = np.random.default_rng(1)
    for path in (clips / "carphone_pristine.mp4", clips / "bikes.mp4", *made):
        video = scan(path)
        whole = read_frames(video, np.arange(video.decoded), convert=lambda frame: frame[::4, ::4])
        for start in rng.integers(1, video.decoded - 9, 4):
            window = np.array([0, 2, 2, 5, 8]) + start
            part = read_frames(video, window, convert=lambda frame: frame[::4, ::4])
            assert np.array_equal(part, whole[window]), (path, start)


def test_resampling_by_time(tmp_path: Path) -> None:
    stamps = [0, 40, 80, 400, 440, 480]
    path = encode(tmp_path / "v.mkv", numbered(6), stamps=stamps, time_base=Fraction(1, 1000))
    assert numbers(decode(path).frames.numpy()) == [0, 1, 2, 2, 2, 2, 2, 2, 2, 2, 3, 4, 5]
    slow = decode(path, fps=12.5)
    assert numbers(slow.frames.numpy()) == [0, 2, 2, 2, 2, 3]
    assert np.allclose(slow.times, np.arange(6) / 12.5)


def test_damage_is_an_error_unless_tolerated(clips: Path, tmp_path: Path) -> None:
    damaged = flip_bytes(clips / "carphone_pristine.mp4", tmp_path / "b.mp4", 300, margin=5000)
    with pytest.raises(CorruptVideoError, match="flagged corrupt"):
        decode(damaged)
    assert decode(damaged, tolerance=Tolerance(1.0, 1.0)).frames.shape[0] == scan(damaged).decoded

    video = scan(damaged)
    with pytest.raises(CorruptVideoError, match="flagged corrupt"):
        read_frames(video, np.arange(video.decoded))

    whole = encode(tmp_path / "w.avi", noise(30))
    with pytest.raises(TruncatedVideoError, match="of 30 declared"):
        decode(truncate(whole, tmp_path / "cut.avi"))


def test_a_file_that_shrank_after_its_scan(tmp_path: Path) -> None:
    path = encode(tmp_path / "a.avi", noise(30))
    video = scan(path)
    truncate(path, path)
    with pytest.raises(TruncatedVideoError, match=r"a\.avi: frame \d+ of 30 is gone"):
        read_frames(video, [2, 28])


def test_frames_out_of_range(tmp_path: Path) -> None:
    video = scan(encode(tmp_path / "a.mp4", numbered(5)))
    for wanted in ([], [-1], [5]):
        with pytest.raises(IndexError, match="of 5"):
            read_frames(video, wanted)


def test_transparency_is_over_black(tmp_path: Path) -> None:
    frames = np.full((3, 32, 32, 4), 255, dtype=np.uint8)
    frames[:, :, :16, 3] = 0
    frames[:, :, 16:, :3] = (250, 10, 10)
    path = encode(tmp_path / "a.mkv", frames, codec="ffv1", pix_fmt="bgra")
    pixels = decode(path).frames.numpy()
    assert (pixels[:, :, :16] == 0).all()
    assert (pixels[:, :, 16:] == (250, 10, 10)).all()


def test_rotation_turns_frames_upright(tmp_path: Path) -> None:
    """A phone's display matrix for a quarter turn, put into the track header: what ran across runs down."""
    path = encode(tmp_path / "a.mp4", numbered(4))
    content = path.read_bytes()
    identity = b"".join(n.to_bytes(4, "big") for n in (65536, 0, 0, 0, 65536, 0, 0, 0, 1 << 30))
    turned = b"".join((n & 0xFFFFFFFF).to_bytes(4, "big") for n in (0, 65536, 0, -65536, 0, 0, 0, 0, 1 << 30))
    at = content.index(identity, content.index(b"tkhd"))
    path.write_bytes(content[:at] + turned + content[at + len(turned) :])
    video = decode(path)
    assert video.scan.rotation in (90, 270)
    assert (video.scan.width, video.scan.height) == (32, 48)
    assert video.frames.shape == (4, 48, 32, 3)
    # This matrix turns clockwise: the dark left edge becomes the top.
    column = video.frames[0, :, 16, 0].float()
    assert column[:8].mean() < column[-8:].mean() - 5


def test_colours_are_unbiased(clips: Path) -> None:
    """YUV to RGB against BT.601 in float64: no offset on average (swscale's default is one level too dark)."""
    import av

    with av.open(str(clips / "bikes.mp4")) as container:
        planes = [
            np.frombuffer(plane, np.uint8).reshape(-1, plane.line_size)[:, : plane.width].astype(np.float64)
            for plane in next(container.decode(video=0)).planes
        ]
    y, u, v = planes[0], *(np.kron(p, np.ones((2, 2))) - 128 for p in planes[1:])
    luma, s = (y - 16) * 255 / 219, 255 / 224
    exact = np.stack([luma + 1.402 * s * v, luma - s * (0.344136 * u + 0.714136 * v), luma + 1.772 * s * u], -1)
    video = scan(clips / "bikes.mp4")
    offset = (read_frames(video, [0])[0] - exact.clip(0, 255)).mean((0, 1))
    assert np.abs(offset).max() < 0.3


def test_a_size_that_changes_midway_keeps_the_first(tmp_path: Path) -> None:
    video = scan(encode(tmp_path / "a.mp4", numbered(6)))
    stretched = dataclasses.replace(video, stored_width=24, stored_height=16)
    assert read_frames(stretched, [0, 3]).shape == (2, 16, 24, 3)


def test_decoding_leaves_no_file_open(tmp_path: Path) -> None:
    path = encode(tmp_path / "a.mp4", numbered(20))
    video = scan(path)
    before = len(os.listdir("/proc/self/fd"))
    for start in range(1, 11):
        read_frames(video, [start])
    assert len(os.listdir("/proc/self/fd")) == before
