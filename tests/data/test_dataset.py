"""Folders, single files, windows, skipping with a count and a limit."""

from __future__ import annotations

import logging
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from vdiff_fast.data import (
    ClipKey,
    ClipSpec,
    EmptyDatasetError,
    MovingDigits,
    ShortVideoError,
    TooManyBadVideosError,
    TruncatedVideoError,
    VideoFile,
    VideoFolder,
    VideoTooLargeError,
    demo_clip,
    loader,
    open_dataset,
)
from vdiff_fast.data.dataset import SkipPolicy

from .conftest import encode, noise, numbered, numbers, truncate

SPEC = ClipSpec(frames=4, size=(16, 16), stride=2, seed=5)


def frame_numbers(item: dict) -> list[int]:
    return numbers(item["video"].permute(1, 2, 3, 0).numpy())


def test_folder_items(folder: Path) -> None:
    data = VideoFolder(folder, SPEC, labels=True)
    # 30, 24 and 17 frames in windows that reach over 7.
    assert len(data) == 4 + 3 + 2
    assert [Path(c).name for c in data.classes] == ["run", "walk"]
    assert data.num_classes == 2
    for index in range(len(data)):
        item = data[index]
        assert item["video"].shape == (3, 4, 16, 16)
        assert item["video"].dtype == torch.uint8
        assert item["index"] == index
        assert item["label"] == (Path(item["file"]).parent.name == "walk")
        first = frame_numbers(item)[0]
        assert frame_numbers(item) == [first, first + 2, first + 4, first + 6]
    assert [Path(data[i]["file"]).name for i in range(9)] == ["a.mp4"] * 4 + ["b.avi"] * 3 + ["c.mkv"] * 2
    assert data.skip_summary() == "0 of 3 skipped, 0 %; limit 5 %"
    with pytest.raises(IndexError):
        data[9]


def test_windows_cover_the_video_over_epochs(folder: Path) -> None:
    data = VideoFolder([folder / "run/a.mp4"], SPEC)
    starts = [[frame_numbers(data[ClipKey(epoch, item)])[0] for epoch in range(40)] for item in range(4)]
    for item, seen in enumerate(starts):
        assert set(seen) == set(range(item * 6, item * 6 + 6))
    even = VideoFolder([folder / "run/a.mp4"], ClipSpec(frames=4, size=(16, 16), stride=2, random_window=False))
    assert [frame_numbers(even[ClipKey(epoch, item)])[0] for epoch in (0, 9) for item in range(4)] == [0, 7, 15, 23] * 2


def test_items_are_pure_functions_of_their_key(folder: Path) -> None:
    spec = ClipSpec(frames=4, size=(16, 16), flip=0.5, random_crop=True, seed=5)
    data = VideoFolder(folder, spec)
    again = pickle.loads(pickle.dumps(data))
    keys = [ClipKey(epoch, item) for epoch in range(3) for item in (0, 5, 8)]
    first = [data[key]["video"] for key in keys]
    assert all(torch.equal(a, again[key]["video"]) for a, key in zip(reversed(first), reversed(keys)))
    assert len({tuple(v.flatten().tolist()) for v in first}) > 6
    assert torch.equal(data[3]["video"], data[ClipKey(0, 3)]["video"])


def test_workers_give_the_same(folder: Path) -> None:
    data = VideoFolder(folder, SPEC)
    alone = [b["video"] for b in loader(data, 3, num_batches=6)]
    apart = [b["video"] for b in loader(data, 3, num_batches=6, workers=2)]
    assert all(torch.equal(a, b) for a, b in zip(alone, apart))
    assert alone[0].is_contiguous(memory_format=torch.channels_last_3d)


def test_rate_and_channels(folder: Path) -> None:
    spec = ClipSpec(frames=3, size=(16, 16), fps=5.0, channels=1, random_window=False)
    item = VideoFolder([folder / "run/a.mp4"], spec)[0]
    assert item["video"].shape == (1, 3, 16, 16)
    assert frame_numbers(item) == [0, 5, 10]


def test_bad_files_are_skipped_counted_and_named(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for i in range(20):
        shutil.copy(folder / "run/a.mp4", tmp_path / f"good_{i:02d}.mp4")
    truncate(encode(tmp_path / "whole.avi", noise(30)), tmp_path / "clip_17.avi")
    (tmp_path / "whole.avi").unlink()
    (tmp_path / "empty.mp4").touch()
    encode(tmp_path / "short.mp4", numbered(3))
    with pytest.raises(TooManyBadVideosError) as raised:
        VideoFolder(tmp_path, SPEC)
    for part in (
        "3 of 23 skipped, 13.04 %; limit 5 %",
        "clip_17.avi: decoded",
        "empty.mp4: ",
        "short.mp4: 3 frames < 4",
    ):
        assert part in str(raised.value)

    caplog.clear()
    with caplog.at_level(logging.WARNING):
        data = VideoFolder(tmp_path, SPEC, skip_limit=0.2)
    assert len(data.videos) == 20
    assert [Path(f.path).name for f in data.skipped] == ["clip_17.avi", "empty.mp4", "short.mp4"]
    message = caplog.messages[0]
    assert message.startswith("clip_17.avi: decoded ")
    assert " of 30 declared frames" in message
    assert message.endswith("; skipped (1 of 23 skipped, 4.35 %; limit 20 %)")


def test_wording_of_the_skip_policy() -> None:
    assert SkipPolicy(5000, 0.05).note("clip_17.mp4: decoded 399 of 795 declared frames (20 flagged corrupt)", 12) == (
        "clip_17.mp4: decoded 399 of 795 declared frames (20 flagged corrupt); "
        "skipped (12 of 5000 skipped, 0.24 %; limit 5 %)"
    )
    SkipPolicy(20, 0.05).enforce(["one"])
    with pytest.raises(TooManyBadVideosError, match="2 of 20 skipped, 10 %; limit 5 %"):
        SkipPolicy(20, 0.05).enforce(["one", "two"])
    with pytest.raises(ValueError, match="fraction"):
        SkipPolicy(20, 5)


def test_a_file_that_fails_later_gives_way_and_counts(folder: Path, tmp_path: Path) -> None:
    for i in range(4):
        shutil.copy(folder / "run/a.mp4", tmp_path / f"{i}.mp4")
    data = VideoFolder(tmp_path, SPEC, skip_limit=0.25)
    (tmp_path / "1.mp4").write_bytes(b"overwritten")
    items = [data[i] for i in range(len(data))]
    assert {Path(i["file"]).name for i in items} == {"0.mp4", "2.mp4", "3.mp4"}
    assert [i["index"] for i in items] == list(range(len(data)))
    assert data.skip_summary() == "1 of 4 skipped, 25 %; limit 25 %"
    # Other processes, which have not seen the failure yet, draw the same.
    fresh = VideoFolder(tmp_path.parent / tmp_path.name, SPEC, skip_limit=0.25)
    assert fresh.skip_summary().startswith("1 of 4")
    again = [data[i] for i in reversed(range(len(data)))][::-1]
    assert all(torch.equal(a["video"], b["video"]) for a, b in zip(items, again))

    (tmp_path / "2.mp4").unlink()
    with pytest.raises(TooManyBadVideosError, match="2 of 4 skipped, 50 %; limit 25 %"):
        [data[i] for i in range(len(data))]


def test_workers_count_failures_together(folder: Path, tmp_path: Path) -> None:
    for i in range(4):
        shutil.copy(folder / "run/a.mp4", tmp_path / f"{i}.mp4")
    data = VideoFolder(tmp_path, SPEC, skip_limit=0.25)
    (tmp_path / "0.mp4").write_bytes(b"overwritten")
    list(loader(data, 4, num_batches=4, workers=2))
    assert data.skip_summary() == "1 of 4 skipped, 25 %; limit 25 %"
    (tmp_path / "3.mp4").write_bytes(b"overwritten")
    with pytest.raises(TooManyBadVideosError, match="2 of 4 skipped"):
        list(loader(data, 4, num_batches=8, workers=2))


def test_nothing_to_train_on(tmp_path: Path) -> None:
    with pytest.raises(EmptyDatasetError, match=r"no video files in this folder or below \(\.mp4"):
        VideoFolder(tmp_path, SPEC)
    (tmp_path / "a.mp4").touch()
    with pytest.raises(EmptyDatasetError, match="no usable video; 1 of 1 skipped, 100 %; limit 100 %"):
        VideoFolder(tmp_path, SPEC, skip_limit=1.0)


def test_a_single_file_in_memory(folder: Path) -> None:
    data = VideoFile(folder / "run/a.mp4", SPEC)
    assert len(data) == 30 - 7 + 1
    assert [frame_numbers(data[i]) for i in (0, 23)] == [[0, 2, 4, 6], [23, 25, 27, 29]]
    assert data[0]["video"].shape == (3, 4, 16, 16)
    with pytest.raises(IndexError):
        data[24]
    assert len(VideoFile(folder / "run/a.mp4", SPEC, step=5)) == 5
    disk = VideoFolder([folder / "run/a.mp4"], ClipSpec(frames=4, size=(16, 16), stride=2, random_window=False))
    assert torch.equal(data[0]["video"], disk[0]["video"])


def test_a_single_file_crops_and_flips_whole_clips(clips: Path) -> None:
    spec = ClipSpec(frames=3, size=(32, 32), flip=0.5, random_crop=True)
    data = VideoFile(clips / "carphone_pristine.mp4", spec)
    assert data._frames.shape == (120, 32, 43, 3)
    variants = [data[ClipKey(epoch, 5)]["video"] for epoch in range(30)]
    assert len({tuple(v.flatten().tolist()) for v in variants}) > 10
    stored = torch.from_numpy(data._frames[5:8]).permute(3, 0, 1, 2)
    for clip in variants:
        options = [stored[..., left : left + 32] for left in range(12)]
        assert any(torch.equal(clip, o) or torch.equal(clip, o.flip(-1)) for o in options)


def test_a_single_bad_file_is_an_error(tmp_path: Path, folder: Path) -> None:
    cut = truncate(encode(tmp_path / "a.avi", noise(30)), tmp_path / "cut.avi")
    with pytest.raises(TruncatedVideoError, match=r"cut\.avi: decoded \d+ of 30 declared frames"):
        VideoFile(cut, SPEC)
    with pytest.raises(ShortVideoError, match="17 frames < 40 needed"):
        VideoFile(folder / "walk/c.mkv", ClipSpec(frames=40, size=(16, 16)))
    with pytest.raises(VideoTooLargeError, match=r"30 frames of 16x24 need .* use VideoFolder"):
        VideoFile(folder / "run/a.mp4", SPEC, max_bytes=1000)
    with pytest.raises(ValueError, match="step must be at least 1"):
        VideoFile(folder / "run/a.mp4", SPEC, step=0)


def test_open_dataset(folder: Path) -> None:
    assert isinstance(open_dataset("moving-digits", frames=4, size=16), MovingDigits)
    assert isinstance(open_dataset(folder, frames=4, size=16), VideoFolder)
    one = open_dataset(str(folder / "run/a.mp4"), frames=4, size=(16, 24), stride=3, seed=9)
    assert isinstance(one, VideoFile)
    assert one.spec == ClipSpec(frames=4, size=(16, 24), stride=3, seed=9)
    large = open_dataset(folder / "run/a.mp4", frames=4, size=16, max_bytes=1000)
    assert isinstance(large, VideoFolder)
    assert large[0]["video"].shape == (3, 4, 16, 16)
    with pytest.raises(FileNotFoundError, match="'moving-digits'"):
        open_dataset("moving_digits", frames=4, size=16)


def test_the_demo_clip() -> None:
    """What the demo trains on: 72 moving frames without a cut or a repeated one."""
    data = open_dataset(demo_clip(), frames=16, size=32)
    assert len(data) == 72 - 16 + 1
    frames = torch.from_numpy(data._frames).float()  # type: ignore[union-attr]
    change = (frames[1:] - frames[:-1]).abs().mean((1, 2, 3))
    assert change.min() > 0.5
    assert change.max() < 10
    assert demo_clip().stat().st_size < 300_000
    assert np.array_equal(data[3]["video"][:, 5].numpy(), data[8]["video"][:, 0].numpy())


def test_clips_of_several_strides_stay_within_their_window(folder: Path) -> None:
    spec = ClipSpec(frames=4, size=(16, 16), strides=(1, 2, 5), seed=5)
    assert spec.span == 16
    data = VideoFolder(folder, spec)
    file = VideoFile(data.videos[0].path, spec)
    for source, epochs in ((data, range(20)), (file, range(1))):
        seen = set()
        for epoch in epochs:
            for index in range(len(source)):
                item = source[ClipKey(epoch, index)]
                first, stride = frame_numbers(item)[0], item["stride"]
                assert frame_numbers(item) == [first + i * stride for i in range(4)]
                seen.add(stride)
        assert seen == {1, 2, 5}
    batch = next(iter(loader(data, 2)))
    assert batch["stride"].shape == (2,)
    with pytest.raises(TooManyBadVideosError, match=r"one in 20 of 61"):
        VideoFolder(folder, ClipSpec(frames=4, size=(16, 16), strides=(1, 20)))
