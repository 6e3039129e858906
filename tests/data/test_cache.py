"""A cached clip is the decoded clip; entries are whole, and never stale."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
import torch

import vdiff_fast.data.cache as cache_module
import vdiff_fast.data.dataset as dataset_module
from vdiff_fast.data import ClipSpec, FrameCache, TruncatedVideoError, UnreadableVideoError, VideoFolder, scan

from .conftest import encode, numbered

SPEC = ClipSpec(frames=4, size=(16, 16), stride=2, seed=5)


def test_cached_items_equal_decoded_ones(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = VideoFolder(folder, SPEC)
    cached = VideoFolder(folder, SPEC, cache_dir=tmp_path / "cache")
    for _ in range(2):
        for index in range(len(plain)):
            assert torch.equal(plain[index]["video"], cached[index]["video"])

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("decoded again")

    for module, names in ((cache_module, ("scan", "open_video")), (dataset_module, ("scan", "read_frames"))):
        for name in names:
            monkeypatch.setattr(module, name, refuse)
    other = ClipSpec(frames=3, size=(16, 16), stride=1, fps=12.5, random_crop=True, flip=0.5, seed=6)
    again = VideoFolder(folder, other, cache_dir=tmp_path / "cache")
    assert again[0]["video"].shape == (3, 3, 16, 16)
    with pytest.raises(AssertionError, match="decoded again"):
        VideoFolder(folder, ClipSpec(frames=4, size=(20, 20)), cache_dir=tmp_path / "cache")[0]


def test_build_ahead(folder: Path, tmp_path: Path) -> None:
    data = VideoFolder(folder, SPEC, cache_dir=tmp_path)
    assert [v.name for v in data.build_cache()] == ["a.mp4", "b.avi", "c.mkv"]
    assert data.cache is not None
    assert all(data.cache.has_frames(v, SPEC) for v in data.videos)
    assert data.cache.size_bytes() > (30 + 24 + 17) * 16 * 24 * 3
    with pytest.raises(ValueError, match="no cache_dir"):
        list(VideoFolder(folder, SPEC).build_cache())


def test_a_changed_file_is_decoded_again(tmp_path: Path) -> None:
    path = encode(tmp_path / "a.mp4", numbered(10))
    cache = FrameCache(tmp_path / "cache")
    before = np.array(cache.frames(cache.scan(path), SPEC))
    encode(path, numbered(10)[::-1])
    os.utime(path, (1, 1))
    after = cache.frames(cache.scan(path), SPEC)
    assert not np.array_equal(before, after)
    assert np.abs(before[::-1].astype(int) - after).mean() < 3


def test_scans_are_remembered_also_bad_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    good = encode(tmp_path / "a.mkv", numbered(10))
    bad = tmp_path / "b.mp4"
    bad.write_bytes(b"no video" * 100)
    cache = FrameCache(tmp_path / "cache")
    first = cache.scan(good)
    with pytest.raises(UnreadableVideoError) as original:
        cache.scan(bad)
    monkeypatch.setattr(cache_module, "scan", None)
    second = cache.scan(good)
    assert np.array_equal(first.times, second.times)
    assert np.array_equal(first.pts, second.pts)
    assert repr(first) == repr(second)
    with pytest.raises(UnreadableVideoError) as remembered:
        cache.scan(bad)
    assert str(remembered.value) == str(original.value)


def test_an_interrupted_build_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = encode(tmp_path / "a.mp4", numbered(10))
    cache = FrameCache(tmp_path / "cache")
    video = scan(path)
    real = cache_module.resize_frame
    calls = iter(range(100))

    def fail_midway(*arguments: object) -> np.ndarray:
        if next(calls) == 5:
            raise KeyboardInterrupt
        return real(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(cache_module, "resize_frame", fail_midway)
    with pytest.raises(KeyboardInterrupt):
        cache.frames(video, SPEC)
    assert list((tmp_path / "cache").iterdir()) == []
    monkeypatch.undo()
    assert cache.frames(video, SPEC).shape == (10, 16, 24, 3)


def test_a_file_that_shrank_is_refused(tmp_path: Path) -> None:
    path = encode(tmp_path / "a.mp4", numbered(10))
    video = scan(path)
    encode(path, numbered(6))
    with pytest.raises(TruncatedVideoError, match=r"a\.mp4: decoded 6 frames, 10 when scanned"):
        FrameCache(tmp_path / "cache").frames(video, SPEC)


def test_several_writers_at_once(tmp_path: Path) -> None:
    path = encode(tmp_path / "a.mp4", numbered(20))
    video = scan(path)
    results: list[np.ndarray] = []
    cache = FrameCache(tmp_path / "cache")
    threads = [Thread(target=lambda: results.append(np.array(cache.frames(video, SPEC)))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 4
    assert all(np.array_equal(results[0], r) for r in results)
    assert len(list((tmp_path / "cache").iterdir())) == 1


def test_the_key_follows_the_file_not_its_name(tmp_path: Path) -> None:
    path = encode(tmp_path / "a.mp4", numbered(5))
    (tmp_path / "link.mp4").symlink_to(path)
    copy = Path(shutil.copy2(path, tmp_path / "copy.mp4"))
    cache = FrameCache(tmp_path / "cache")
    assert cache.key(path, 1) == cache.key(tmp_path / "link.mp4", 1)
    assert len({cache.key(path, 1), cache.key(path, 2), cache.key(copy, 1)}) == 3
