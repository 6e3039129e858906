"""What a container hides from players: edit lists, cuts inside a group of pictures, covers, other texts, bad seeks."""

from __future__ import annotations

import importlib
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from vdiff_fast.data import (
    ClipSpec,
    CorruptVideoError,
    FrameCache,
    Tolerance,
    TruncatedVideoError,
    UnreadableVideoError,
    VideoFolder,
    check_video,
    decode,
    demo_clip,
    read_frames,
    scan,
    write_video,
)

from .conftest import Program, encode, encode_with, noise, numbered, numbers, shown_by


def _encode(ffmpeg: Program, path: Path, frames: np.ndarray, codec: str, options: dict) -> Path:
    if codec in ("libx265", "libtheora"):
        given = [part for name, value in options.items() for part in (f"-{name}", value)]
        return encode_with(ffmpeg, path, frames, "-c:v", codec, "-g", "10", *given)
    return encode(path, frames, codec=codec, gop=10, options=options)


def cut(path: Path, share: float) -> Path:
    """The end of a transport stream, from a packet of 188 bytes on."""
    content = path.read_bytes()
    path.write_bytes(content[int(len(content) / 188 * share) * 188 :])
    return path


@pytest.mark.parametrize("suffix", ["mp4", "mov", "m4v", "3gp"])
def test_an_edit_list_hides_frames(tmp_path: Path, ffmpeg: Program, suffix: str) -> None:
    """A file trimmed without encoding anew keeps its group of pictures and shows the part that was asked for."""
    whole = encode(tmp_path / "whole.mp4", numbered(32), codec="libx264", gop=12)
    path = tmp_path / f"trimmed.{suffix}"
    ffmpeg("-ss", "0.6", "-i", whole, "-c", "copy", path)
    video = scan(path)
    assert video.hidden > 0
    assert video.declared == video.decoded + video.hidden
    assert (check_video(path).verdict, check_video(path).reason) == ("ok", "")
    shown = shown_by(ffmpeg, path, 32, 48)
    found = decode(path).frames.numpy()
    assert numbers(found) == numbers(shown) == [*range(15, 32)]
    assert np.abs(found.astype(int) - shown).max() <= 1
    for first in range(0, 14, 3):
        assert np.array_equal(read_frames(video, [first, first + 2]), found[[first, first + 2]])


def test_an_edit_list_that_lacks_frames_is_still_truncated(tmp_path: Path, ffmpeg: Program) -> None:
    whole = encode(tmp_path / "w.mp4", numbered(32), codec="libx264", gop=12, options={"crf": "1"})
    path = tmp_path / "trimmed.mp4"
    ffmpeg("-ss", "0.6", "-i", whole, "-c", "copy", "-movflags", "+faststart", path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    assert check_video(path, tolerance=Tolerance(max_corrupt=1.0)).verdict == "bad"
    assert "never shown" in check_video(path).reason


@pytest.mark.parametrize(
    ("codec", "options"),
    [
        ("libx264", {"bf": "2"}),
        ("libx264", {"bf": "2", "x264-params": "open-gop=1"}),
        ("libx265", {"x265-params": "log-level=none:bframes=2"}),
        ("mpeg2video", {"bf": "2", "qscale": "2", "sc_threshold": "1000000000"}),
        ("mpeg4", {"qscale": "2"}),
    ],
)
def test_a_stream_that_begins_inside_a_group_of_pictures(
    tmp_path: Path, ffmpeg: Program, codec: str, options: dict
) -> None:
    path = _encode(ffmpeg, tmp_path / "a.ts", numbered(32), codec, options)
    whole = decode(path).frames.numpy()
    video = scan(cut(path, 0.45))
    assert video.hidden > 0
    found = decode(path).frames.numpy()
    assert np.array_equal(found, whole[-len(found) :])
    assert 10 < video.decoded < 25
    check = check_video(path)
    assert check.verdict == "warning"
    assert f"begins inside a group of pictures; its first {video.hidden} frames cannot be shown" in check.reason
    # The program shows these frames, and for some codecs grey ones before them.
    assert np.abs(shown_by(ffmpeg, path, 32, 48)[-len(found) :].astype(int) - found).max() <= 1


def test_a_stream_of_damaged_packets_is_not_one_that_begins_late(tmp_path: Path) -> None:
    """The first group of pictures is there and broken: that is damage."""
    path = encode(tmp_path / "a.mp4", numbered(32), codec="libx264", gop=10, options={"qp": "0"})
    content = bytearray(path.read_bytes())
    start = content.index(b"mdat") + 800
    content[start : start + 400] = bytes(400)
    path.write_bytes(bytes(content))
    assert isinstance(scan(path).problem(), CorruptVideoError)


def test_covers_are_not_the_video(tmp_path: Path, ffmpeg: Program) -> None:
    whole = encode(tmp_path / "whole.mp4", numbered(16), codec="libx264")
    cover = tmp_path / "cover.png"
    ffmpeg("-f", "lavfi", "-i", "color=red:size=200x200", "-frames:v", "1", cover)
    both = ("-i", whole, "-i", cover, "-c", "copy")
    ffmpeg(*both, "-map", "0", "-map", "1", "-disposition:v:1", "attached_pic", tmp_path / "after.mp4")
    ffmpeg(*both, "-map", "1", "-map", "0", "-disposition:v:0", "default", tmp_path / "before.mp4")
    ffmpeg(
        "-i", whole, "-map", "0", "-c", "copy", "-attach", cover, "-metadata:s:t", "mimetype=image/png",
        tmp_path / "a.mkv",
    )  # fmt: skip
    for name in ("after.mp4", "before.mp4", "a.mkv"):
        assert (check_video(tmp_path / name).verdict, check_video(tmp_path / name).reason) == ("ok", "")
        assert numbers(decode(tmp_path / name).frames.numpy()) == [*range(16)]
    ffmpeg(
        "-f", "lavfi", "-i", "sine=duration=2", "-i", cover, "-map", "0", "-map", "1", "-c:v", "copy",
        "-disposition:v:0", "attached_pic", tmp_path / "song.mp4",
    )  # fmt: skip
    with pytest.raises(UnreadableVideoError, match=r"song\.mp4: only a cover picture, no video"):
        scan(tmp_path / "song.mp4")


def test_texts_of_other_encodings_do_not_matter(tmp_path: Path) -> None:
    """A title in Latin-1, in the file and its stream: read, and the folder with it."""
    import av

    for name in ("a.mkv", "a.webm", "a.mp4", "a.avi", "a.mov"):
        codec = "libvpx" if name.endswith("webm") else "mpeg4"
        with av.open(str(tmp_path / name), "w") as container:
            container.metadata["title"] = "TITLEOFTHEFILE"
            stream = container.add_stream(codec, rate=25)
            stream.metadata["title"] = stream.metadata["language"] = "STR"
            stream.width, stream.height, stream.pix_fmt = 48, 32, "yuv420p"
            for i, pixels in enumerate(numbered(8)):
                frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
                frame.pts, frame.time_base = i, Fraction(1, 25)
                container.mux(stream.encode(frame))
            container.mux(stream.encode())
        content = (tmp_path / name).read_bytes()
        assert b"TITLEOFTHEFILE" in content
        content = content.replace(b"TITLEOFTHEFILE", b"Caf\xe9 \xff\xfe\x80 mus\xe9e").replace(b"STR", b"\xe9\xff\x80")
        (tmp_path / name).write_bytes(content)
        assert check_video(tmp_path / name).verdict == "ok"
    assert len(VideoFolder(tmp_path, ClipSpec(frames=4, size=(16, 16))).videos) == 5


# Containers that seek by bytes or to pictures that build on others, and streams without key frames of their own.
SEEKS = {
    "h264 open": ("a.ts", "libx264", {"bf": "3", "x264-params": "open-gop=1:scenecut=0"}),
    "h264 refreshed": ("a.ts", "libx264", {"x264-params": "intra-refresh=1:keyint=12"}),
    "h264 refreshed in mp4": ("a.mp4", "libx264", {"x264-params": "intra-refresh=1:keyint=12"}),
    "h264 raw": ("a.h264", "libx264", {"bf": "2"}),
    "hevc open": ("a.mp4", "libx265", {"x265-params": "log-level=none:open-gop=1:bframes=3"}),
    "mpeg2 open": ("a.mpg", "mpeg2video", {"bf": "2", "qscale": "2"}),
    "mpeg2 open in ts": ("a.ts", "mpeg2video", {"bf": "2", "qscale": "2"}),
    "mpeg2 raw": ("a.m2v", "mpeg2video", {"bf": "2", "qscale": "2"}),
    "mpeg4": ("a.ts", "mpeg4", {"bf": "2", "qscale": "2"}),
    "mpeg4 raw": ("a.m4v", "mpeg4", {"qscale": "2"}),
    "vp9": ("a.webm", "libvpx-vp9", {"auto-alt-ref": "1", "lag-in-frames": "10"}),
    "flv": ("a.flv", "flv", {"qscale": "2"}),
    "avi": ("a.avi", "libx264", {"bf": "2"}),
    "theora": ("a.ogv", "libtheora", {"q:v": "9"}),
    "wmv": ("a.wmv", "wmv2", {"qscale": "2"}),
}


@pytest.mark.parametrize("case", SEEKS)
def test_a_seek_gives_the_frame_that_was_asked_for(tmp_path: Path, ffmpeg: Program, case: str) -> None:
    name, codec, options = SEEKS[case]
    rng = np.random.default_rng(0)
    # Pictures that change in part, so that a wrong reference shows.
    frames = numbered(32, 64, 64).copy()
    for i in range(32):
        frames[i:, 8 * (i % 8) :][:, :8, 8 * (i // 4) :][:, :, :8] = rng.integers(0, 255, 3)
    path = tmp_path / name
    _encode(ffmpeg, path, frames, codec, options)
    video = scan(path)
    whole = read_frames(video, np.arange(video.decoded))
    assert video.decoded >= 31
    for first in range(1, video.decoded - 4, 3):
        window = np.array([0, 1, 3]) + first
        assert np.array_equal(read_frames(video, window), whole[window]), first
        assert np.array_equal(read_frames(video, window, deinterlace=True), whole[window]), first


def test_a_seek_that_lies_is_not_believed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file whose pictures have changed under the same stamps: what a seek gives is not what the scan saw."""
    path = encode(tmp_path / "a.mp4", numbered(32), gop=8)
    video = scan(path)
    encode(path, numbered(32)[::-1], gop=8)
    module = importlib.import_module("vdiff_fast.data.decode")
    starts = []
    numbered_from = module._numbered

    def spy(scanned, threads, start, first, accept_damage):  # type: ignore[no-untyped-def]
        starts.append(start)
        return numbered_from(scanned, threads, start, first, accept_damage)

    monkeypatch.setattr(module, "_numbered", spy)
    for tolerance in (Tolerance(), Tolerance(max_corrupt=0.1)):
        starts.clear()
        if tolerance.max_corrupt:
            assert numbers(read_frames(video, [20], tolerance=tolerance)) == [11]
        else:
            with pytest.raises(TruncatedVideoError, match=r"a\.mp4: frame 20 of 32 is gone, damaged or not the one"):
                read_frames(video, [20], tolerance=tolerance)
        assert starts == [20, 8, 0]
    with pytest.raises(TruncatedVideoError, match="frame 0 of 32 is gone, damaged or not the one that was scanned"):
        FrameCache(tmp_path / "cache").frames(video, ClipSpec(4, (16, 16)))


def test_lost_packets_of_a_transport_stream_are_damage(tmp_path: Path) -> None:
    """Each packet of 188 bytes bears a counter: one that is missing is noticed, also where the rest decodes."""
    whole = encode(tmp_path / "a.ts", noise(16), codec="mpeg2video", gop=8, options={"qscale": "8"})
    content = whole.read_bytes()
    assert scan(whole).problem() is None
    for packet in (40, 80, 120):
        (tmp_path / "b.ts").write_bytes(content[: 188 * packet] + content[188 * (packet + 1) :])
        assert isinstance(scan(tmp_path / "b.ts").problem(), CorruptVideoError), packet


@pytest.mark.parametrize("options", [{"level": "3"}, {"level": "3", "slices": "9", "slicecrc": "1"}, {"level": "1"}])
def test_checksums_of_ffv1_are_read(tmp_path: Path, options: dict) -> None:
    """FFmpeg conceals a damaged slice with what lies in memory, differently each time, and says nothing."""
    path = encode(tmp_path / "a.mkv", noise(8), codec="ffv1", options=options)
    assert scan(path).problem() is None
    content = bytearray(path.read_bytes())
    content[len(content) // 2 :][:8] = bytes(8)
    content[len(content) // 2] ^= 0x55
    path.write_bytes(bytes(content))
    # Level 1 has no checksums: its damage cannot be known.
    assert isinstance(scan(path).problem(), CorruptVideoError) == (options["level"] == "3")


def test_the_blocks_of_a_gif_are_walked(tmp_path: Path) -> None:
    """A GIF has no checksum: what shifts its blocks, ends early or goes on behind its end is noticed, and no more."""
    from PIL import Image

    path = encode(tmp_path / "a.gif", noise(6), codec="gif", pix_fmt="rgb8")
    content = path.read_bytes()
    pictures = [Image.fromarray(frame) for frame in noise(3)]
    pictures[0].save(tmp_path / "b.gif", save_all=True, append_images=pictures[1:], comment="a ; b", loop=0)
    for sound in (path, tmp_path / "b.gif", demo_gif(tmp_path)):
        assert scan(sound).problem() is None
    middle = len(content) // 2
    for broken in (
        content[:-1], content[:middle], content[:10], content[:middle] + content[middle + 9 :],
        content[:middle] + bytes(3) + content[middle:], content + content[-400:],
    ):  # fmt: skip
        path.write_bytes(broken)
        assert check_video(path).verdict == "bad"


def demo_gif(folder: Path) -> Path:
    return write_video(decode(demo_clip(), layout="CTHW").frames[:, :8], folder / "demo.gif").path
