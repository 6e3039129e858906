"""The report on a folder: numbers, verdicts, reasons, and one summary line."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path

import pytest

from vdiff_fast.data import ClipSpec, Tolerance, VideoFolder, check_video, check_videos
from vdiff_fast.data.errors import TooManyBadVideosError

from .conftest import encode, flip_bytes, noise, numbered, truncate


@pytest.fixture
def mixed(tmp_path: Path, clips: Path) -> Path:
    encode(tmp_path / "a_good.mp4", numbered(20))
    truncate(encode(tmp_path / "whole.avi", noise(30)), tmp_path / "b_cut.avi")
    (tmp_path / "whole.avi").unlink()
    flip_bytes(clips / "carphone_pristine.mp4", tmp_path / "c_flipped.mp4", 300, margin=5000)
    (tmp_path / "d_text.mp4").write_text("text\n" * 100)
    encode(tmp_path / "e_variable.mkv", numbered(6), stamps=[0, 40, 80, 400, 440, 480], time_base=Fraction(1, 1000))
    return tmp_path


def test_report(mixed: Path) -> None:
    report = check_videos(mixed)
    assert [f.verdict for f in report.files] == ["ok", "bad", "bad", "bad", "warning"]
    good, cut, flipped, text, variable = report.files
    assert (good.declared, good.decoded, good.corrupt, good.width, good.height) == (20, 20, 0, 48, 32)
    assert good.fps == pytest.approx(25)
    assert good.duration == pytest.approx(0.8)
    assert good.reason == ""
    assert cut.declared == 30
    assert cut.decoded is not None
    assert cut.reason.startswith(f"b_cut.avi: decoded {cut.decoded} of 30 declared frames")
    assert flipped.corrupt
    assert f"({flipped.corrupt} flagged corrupt)" in flipped.reason
    assert text.decoded is None
    assert "not a video" in text.reason
    assert variable.reason == "variable frame rate; resampled by its time stamps"
    assert not report.ok
    assert report.summary() == "5 files, 2 usable (1 with a warning), 1.3 s; 3 of 5 skipped, 60 %; limit 5 %"


def test_table(mixed: Path) -> None:
    report = check_videos(mixed)
    lines = report.format().splitlines()
    assert lines[0].split() == ["verdict", "declared", "decoded", "corrupt", "size", "fps", "seconds", "file"]
    assert lines[1].split()[:7] == ["ok", "20", "20", "0", "48x32", "25", "0.80"]
    assert lines[4].split()[:4] == ["bad", "-", "-", "-"]
    assert lines[-1] == report.summary()
    assert len(lines) == 7
    assert len(report.format(only_problems=True).splitlines()) == 6
    assert json.loads(json.dumps(report.to_json()))["files"][0]["decoded"] == 20


def test_the_report_agrees_with_training(mixed: Path) -> None:
    spec = ClipSpec(frames=4, size=(16, 16))
    with pytest.raises(TooManyBadVideosError):
        VideoFolder(mixed, spec)
    usable = {f.path for f in check_videos(mixed, spec=spec).files if f.verdict != "bad"}
    assert usable == {v.path for v in VideoFolder(mixed, spec, skip_limit=1.0).videos}
    assert check_videos(mixed, limit=0.6).ok


def test_single_files_and_short_ones(mixed: Path) -> None:
    report = check_videos([mixed / "a_good.mp4", mixed / "none.mp4"], spec=ClipSpec(frames=32, size=(16, 16)))
    assert [f.verdict for f in report.files] == ["bad", "bad"]
    assert "20 frames < 32 needed" in report.files[0].reason
    assert "none.mp4: No such file" in report.files[1].reason
    tolerant = check_video(mixed / "c_flipped.mp4", tolerance=Tolerance(1.0, 1.0))
    assert tolerant.verdict == "warning"
    assert "flagged corrupt" in tolerant.reason


def test_remarks(tmp_path: Path) -> None:
    odd = check_video(encode(tmp_path / "o.avi", numbered(4, 31, 47), codec="ffv1", pix_fmt="bgr0"))
    assert (odd.verdict, odd.reason) == ("warning", "odd size 47x31")
    sparse = check_video(encode(tmp_path / "s.avi", numbered(4), stamps=[0, 1, 2, 19], rate=10))
    assert "header declares 20 frames, 4 are stored; time stamps are used" in sparse.reason


def test_progress_sees_every_file(mixed: Path) -> None:
    seen = []

    def progress(files, total):  # type: ignore[no-untyped-def]
        for file in files:
            seen.append((file.path, total))
            yield file

    assert len(check_videos(mixed, progress=progress).files) == 5
    assert {total for _, total in seen} == {5}


def test_an_empty_folder(tmp_path: Path) -> None:
    report = check_videos(tmp_path)
    assert not report.ok
    assert report.format() == "0 files, 0 usable (0 with a warning), 0.0 s; 0 of 0 skipped, 0 %; limit 5 %"
