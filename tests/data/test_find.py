"""Each file once, under any name."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from vdiff_fast.cli import app
from vdiff_fast.data import ClipSpec, FrameCache, VideoFolder, check_videos, decode, find_videos, scan, write_video

from .conftest import encode, numbered

ROOT = Path(__file__).parents[2]
SPEC = ClipSpec(frames=4, size=(16, 16))


def relative(root: Path) -> list[str]:
    return [path.relative_to(root).as_posix() for path in find_videos(root)]


def test_find_videos(tmp_path: Path) -> None:
    for name in ("b/2.MP4", "a/1.avi", "a/.hidden.mp4", ".git/x.mp4", "notes.txt", "c.gif"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert relative(tmp_path) == ["a/1.avi", "b/2.MP4", "c.gif"]
    assert find_videos(tmp_path / "notes.txt") == [tmp_path / "notes.txt"]
    with pytest.raises(FileNotFoundError, match="no such file or folder"):
        find_videos(tmp_path / "nowhere")


def test_links_lead_to_each_file_once(tmp_path: Path) -> None:
    """Upwards, sideways, to files, hard and soft, broken: a file's own name wins over a link's."""
    root = tmp_path / "d"
    for name in ("a/x.mp4", "z/y.mp4"):
        (root / name).parent.mkdir(parents=True)
        (root / name).touch()
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside/o.mp4").touch()
    (root / "a/up").symlink_to("..")
    (root / "a/itself").symlink_to("itself")
    (root / "0").symlink_to("z")
    (root / "0file.mp4").symlink_to("a/x.mp4")
    (root / "broken.mp4").symlink_to("nowhere.mp4")
    os.link(root / "z/y.mp4", root / "zz.mp4")
    (root / "more").symlink_to(tmp_path / "outside")
    (root / "again").symlink_to(tmp_path / "outside")
    assert relative(root) == ["a/x.mp4", "again/o.mp4", "broken.mp4", "z/y.mp4"]


def test_a_loop_makes_one_item_and_one_class(tmp_path: Path) -> None:
    encode(tmp_path / "x.mp4", numbered(8))
    (tmp_path / "d/a").mkdir(parents=True)
    (tmp_path / "x.mp4").rename(tmp_path / "d/a/x.mp4")
    (tmp_path / "d/a/up").symlink_to("..")
    data = VideoFolder(tmp_path / "d", SPEC, labels=True)
    assert (len(data.videos), data.num_classes) == (1, 1)
    report = check_videos([tmp_path / "d", tmp_path / "d/a/x.mp4", tmp_path / "d/a/up/a/x.mp4"])
    assert len(report.files) == 1


NAMES = [
    "12:30:45.mp4", "concat:a.mp4", "file:a.mp4", "-i.mp4", "--help.mp4", "a b.mp4", "a\nb.mp4", "a%03d.mp4", "%.mp4",
    "[x]{y}?*.mp4", "pipe:0.mp4", "http:x.mp4", "data:text,x.mp4", "~.mp4", "\N{SNOWMAN}.mp4", "a'b\"c.mp4", "a|b.mp4",
    "a\x1b[31mb.mp4", "n" * 251 + ".mp4",
]  # fmt: skip


def test_any_name_is_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    """By its full path and in the current folder: read, checked, cached, written, listed on one line."""
    original = encode(tmp_path / "original.mp4", numbered(8))
    folder = tmp_path / "d"
    folder.mkdir()
    monkeypatch.chdir(folder)
    names = [*NAMES, os.fsdecode(b"caf\xe9.mp4")]
    for name in names:
        shutil.copy(original, folder / name)
    for source in (".", folder):
        report = check_videos(source)
        assert sorted(Path(file.path).name for file in report.files) == sorted(names)
        assert {file.verdict for file in report.files} == {"ok"}, report.format()
        assert len(report.format().splitlines()) == len(names) + 2
        report.format().encode()
    cache = FrameCache(tmp_path / "cache")
    for name in names:
        assert cache.frames(cache.scan(name), SPEC).shape == (8, 16, 24, 3)
        assert decode(name).frames.shape[0] == 8
    assert len(VideoFolder(".", SPEC)) == 2 * len(names)
    assert app.run(["check-data", ".", "--json", str(tmp_path / "r.json")]) == 0
    assert len(json.loads((tmp_path / "r.json").read_text())["files"]) == len(names)
    assert len(capsys.readouterr().out.splitlines()) == len(names) + 2
    video = decode(original, layout="CTHW").frames
    for name in names:
        assert scan(write_video(video, name).path).decoded == 8


def test_a_bad_file_of_any_name_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "a\nb.mp4").write_bytes(b"no video")
    (tmp_path / os.fsdecode(b"caf\xe9.mp4")).write_bytes(b"no video")
    assert app.run(["check-data", str(tmp_path)]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4
    assert "a\\nb.mp4: not a video" in lines[1]
    assert "caf\\xe9.mp4: not a video" in lines[2]


def test_the_command_line_prints_any_path(tmp_path: Path) -> None:
    """With an encoding that lacks the letters, and bytes that are no text."""
    folder = tmp_path / os.fsdecode(b"caf\xe9 \xe6\x98\xa0")
    folder.mkdir()
    encode(tmp_path / "a.mp4", numbered(8)).rename(folder / "\N{SNOWMAN}.mp4")
    done = subprocess.run(
        [sys.executable, "-m", "vdiff_fast.cli", "cache", folder, "--cache-dir", folder / "cache", "--frames", "4"],
        capture_output=True, timeout=300, cwd=ROOT, env=os.environ | {"PYTHONIOENCODING": "latin-1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert b"1 files" in done.stdout
