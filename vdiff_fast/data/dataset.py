"""Clips from folders and files: dictionaries of `video` uint8 (C, T, H, W), `file`, `index`, and `label` if known."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset, get_worker_info

from vdiff_fast.data.cache import FrameCache, training_size
from vdiff_fast.data.decode import read_frames
from vdiff_fast.data.digits import MovingDigits
from vdiff_fast.data.draw import Draw
from vdiff_fast.data.errors import EmptyDatasetError, TooManyBadVideosError, VideoError, VideoTooLargeError
from vdiff_fast.data.find import find_videos
from vdiff_fast.data.sampler import ClipKey, fingerprint
from vdiff_fast.data.scan import DEFAULT_TOLERANCE, Tolerance, VideoScan, scan
from vdiff_fast.data.transforms import ClipSpec, Fit, as_size, choose_placement, place, resize_frame

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SkippedFile:
    """A file that is left out, and why."""

    path: str
    reason: str


class SkipPolicy:
    """Leave unusable files out, count them, and stop when they are more than `limit` (a fraction) of all files."""

    def __init__(self, total: int, limit: float) -> None:
        if not 0.0 <= limit <= 1.0:
            raise ValueError(f"the limit of skipped files is a fraction in [0, 1], got {limit}")
        self.total, self.limit = total, limit

    def summary(self, skipped: int) -> str:
        """ "12 of 5000 skipped, 0.24 %; limit 5 %"."""
        share = f"{100.0 * skipped / max(1, self.total):.2f}".rstrip("0").rstrip(".")
        return f"{skipped} of {self.total} skipped, {share} %; limit {100.0 * self.limit:g} %"

    def note(self, reason: str, skipped: int) -> str:
        """ "clip_17.mp4: decoded 399 of 795 declared frames (20 flagged corrupt); skipped (12 of 5000 ...)"."""
        return f"{reason}; skipped ({self.summary(skipped)})"

    def enforce(self, reasons: Sequence[str]) -> None:
        """Raise `TooManyBadVideosError` if this many are too many."""
        if len(reasons) > self.limit * self.total:
            shown = "\n  ".join(reasons[:5])
            more = f"\n  ... and {len(reasons) - 5} more" if len(reasons) > 5 else ""
            raise TooManyBadVideosError(
                f"{self.summary(len(reasons))}:\n  {shown}{more};\n"
                "check the folder with `vdiff-fast check-data`, remove the files or raise data.skip_limit"
            )


class VideoFolder(Dataset):
    """Every video below a folder (or of a list of files), sorted; clips are decoded when asked for.

    All files are looked at once, in threads (`scan`); with `cache_dir` the result and the decoded frames are kept on
    disk at training resolution. A file with n different frames gives max(1, n // span) items; item k's window starts at
    a random frame in the k-th of as many equal parts, so that every epoch sees all of a video, each time a little
    elsewhere. A picture that stands still for long counts as one frame: pauses give no items of their own.

    Items are pure functions of (`spec.seed`, epoch, index). `labels=True` adds the class: the number of the file's
    folder among `classes`, the sorted folders that hold videos, usable or not: a damaged file changes no number. A
    class is called by its folder's path below `root`. Unusable files are skipped and logged, as `skipped` and
    `skip_summary()` tell. A file that fails later gives way to a clip of another, drawn from the same seed, and counts
    too. `fingerprint` is of what the indices stand for: the files' names, and how many items each has.

    Errors: `EmptyDatasetError` without any usable video; `TooManyBadVideosError` above `skip_limit`.
    """

    clip_keys = True

    def __init__(
        self, root: str | os.PathLike[str] | Sequence[str | os.PathLike[str]], spec: ClipSpec, *,
        labels: bool = False, cache_dir: str | os.PathLike[str] | None = None, skip_limit: float = 0.05,
        tolerance: Tolerance = DEFAULT_TOLERANCE, scan_threads: int | None = None,
        progress: Callable[[Iterator[Any], int], Iterator[Any]] | None = None,
    ) -> None:  # fmt: skip
        paths = find_videos(root) if isinstance(root, (str, os.PathLike)) else [Path(p) for p in root]
        if not paths:
            raise EmptyDatasetError(f"{root}: no video files in this folder or below (.mp4, .avi, .gif, .mkv, ...)")
        self.spec, self.tolerance, self.labels = spec, tolerance, labels
        self.cache = FrameCache(cache_dir) if cache_dir is not None else None
        self.policy = SkipPolicy(len(paths), skip_limit)
        self.skipped: list[SkippedFile] = []
        self.videos: list[VideoScan] = []
        self._grids: list[np.ndarray] = []
        self._starts: list[np.ndarray] = []
        self._scan_all(paths, scan_threads or min(8, os.cpu_count() or 1), progress)
        self.policy.enforce([file.reason for file in self.skipped])
        # Shared with the loader's workers, so that all of them see what any of them had to skip.
        self._failed = torch.zeros(len(self.videos), dtype=torch.uint8, device="cpu").share_memory_()
        if not self.videos:
            raise EmptyDatasetError(f"{root}: no usable video; {self.skip_summary()}")
        different = [1 + int(np.count_nonzero(np.diff(grid))) for grid in self._grids]
        self._ends = np.cumsum([max(1, count // spec.span) for count in different])
        top = Path(root) if isinstance(root, (str, os.PathLike)) else None
        self.classes = sorted({_class_name(path, top) for path in paths})
        numbers = {name: number for number, name in enumerate(self.classes)}
        self._labels = [numbers[_class_name(Path(video.path), top)] for video in self.videos]
        names = [os.path.join(_class_name(Path(video.path), top), video.name) for video in self.videos]
        self.fingerprint = fingerprint(zip(names, self._ends.tolist()))
        if labels:
            self._warn_of_empty_classes()

    @property
    def num_classes(self) -> int | None:
        """Number of labels, None if items carry none."""
        return len(self.classes) if self.labels else None

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, key: int | ClipKey) -> dict[str, Any]:
        epoch, index = key if isinstance(key, tuple) else (0, range(len(self))[key])
        for attempt in range(100):
            draw = Draw(self.spec.seed, epoch, index, stream=2 + attempt)
            chosen = index if attempt == 0 else draw.integer(len(self))
            file = int(np.searchsorted(self._ends, chosen, side="right"))
            if self._failed[file]:
                continue
            try:
                return self._clip(file, chosen, index, draw)
            except (VideoError, OSError) as error:
                self._give_up(file, error)
        raise TooManyBadVideosError(f"no readable clip in 100 draws; {self.skip_summary()}")

    def skip_summary(self) -> str:
        """ "12 of 5000 skipped, 0.24 %; limit 5 %", counting files that failed while training too."""
        return self.policy.summary(len(self.skipped) + int(self._failed.sum()))

    def build_cache(self) -> Iterator[VideoScan]:
        """Decode every file that is not there yet into `cache_dir`, yielding each file in turn."""
        if self.cache is None:
            raise ValueError("this data set has no cache_dir")
        for video in self.videos:
            self.cache.frames(video, self.spec)
            yield video

    def _warn_of_empty_classes(self) -> None:
        used = set(self._labels)
        empty = [name for number, name in enumerate(self.classes) if number not in used]
        if empty:
            _log.warning("no usable video of the class %s: nothing is learned of it", ", ".join(empty))

    def _scan_all(self, paths: Sequence[Path], threads: int, progress: Callable | None) -> None:
        with ThreadPoolExecutor(threads) as pool:
            results: Iterator[tuple[Path, VideoScan | Exception]] = zip(paths, pool.map(self._scan_one, paths))
            for path, result in progress(results, len(paths)) if progress else results:
                if isinstance(result, Exception):
                    self.skipped.append(SkippedFile(os.fspath(path), str(result)))
                    _log.warning(self.policy.note(str(result), len(self.skipped)))
                else:
                    self.videos.append(result)
                    self._grids.append(result.grid(self.spec.fps))
                    self._starts.append(_window_starts(self._grids[-1], self.spec.span))

    def _scan_one(self, path: Path) -> VideoScan | Exception:
        try:
            video = scan(path, threads=1) if self.cache is None else self.cache.scan(path, threads=1)
            problem = video.problem(self.tolerance)
            if problem is None:
                self.spec.require(video.name, len(video.grid(self.spec.fps)))
            return problem or video
        except (VideoError, OSError) as error:
            return error

    def _clip(self, file: int, chosen: int, index: int, draw: Draw) -> dict[str, Any]:
        video, grid = self.videos[file], self._grids[file]
        first = int(self._ends[file - 1]) if file else 0
        start = self._window_start(chosen - first, int(self._ends[file]) - first, self._starts[file], draw)
        stride, start = _clip_place(self.spec, start, draw)
        frames = self._read(video, grid[self.spec.window(start, stride)])
        placement = choose_placement(draw, training_size(video, self.spec), self.spec)
        clip = place(torch.from_numpy(frames).permute(3, 0, 1, 2), self.spec.size, placement)
        item = {"video": clip, "file": video.path, "index": index, "stride": stride}
        return item | {"label": self._labels[file]} if self.labels else item

    def _window_start(self, part: int, parts: int, starts: np.ndarray, draw: Draw) -> int:
        """Somewhere in the part-th of `parts` equal shares of all starts, or evenly spread without `random_window`."""
        if not self.spec.random_window:
            return int(starts[part * (len(starts) - 1) // max(1, parts - 1)])
        low, high = part * len(starts) // parts, (part + 1) * len(starts) // parts
        return int(starts[min(low + draw.integer(max(1, high - low)), len(starts) - 1)])

    def _read(self, video: VideoScan, indices: np.ndarray) -> np.ndarray:
        # Workers are the parallelism; FFmpeg's own threads would only fight for the cores.
        threads = 0 if get_worker_info() is None else 1
        if self.cache is not None:
            return np.ascontiguousarray(self.cache.frames(video, self.spec, threads=threads)[indices])
        size, channels = training_size(video, self.spec), self.spec.channels
        return read_frames(
            video, indices, convert=lambda frame: resize_frame(frame, size, channels), threads=threads,
            tolerance=self.tolerance, deinterlace=self.spec.deinterlace,
        )  # fmt: skip

    def _give_up(self, file: int, error: Exception) -> None:
        """Mark a file that failed after its scan (deleted, overwritten, a disk that fails) and hold the limit."""
        self._failed[file] = 1
        failed = [f"{self.videos[int(i)].name}: failed after its scan" for i in torch.nonzero(self._failed)]
        reasons = [f.reason for f in self.skipped] + failed
        _log.warning(self.policy.note(str(error), len(reasons)))
        self.policy.enforce(reasons)


def _class_name(path: Path, top: Path | None) -> str:
    """The file's folder, below `top` where it is there; "." is `top` itself."""
    folder = path.parent
    return folder.relative_to(top).as_posix() if top is not None and folder.is_relative_to(top) else folder.as_posix()


def _window_starts(grid: np.ndarray, span: int) -> np.ndarray:
    """Places of a grid at which a window of `span` fits and a frame is shown that was not shown before."""
    new = np.concatenate([[True], np.diff(grid) != 0])[: len(grid) - span + 1]
    return np.flatnonzero(new)


def _clip_place(spec: ClipSpec, start: int, draw: Draw) -> tuple[int, int]:
    """(stride, first frame) of the clip in the window at `start`, which is long enough for the largest stride."""
    stride = spec.draw_stride(draw)
    slack = spec.slack(stride)
    return stride, start + (draw.integer(slack + 1) if slack and spec.random_window else 0)


class VideoFile(Dataset):
    """All windows of one video, held decoded in memory at training resolution (uint8, resized and not yet cropped).

    Item i is the window that starts at frame i * `step`. Errors: those of `decode`; `ShortVideoError`;
    `VideoTooLargeError` if the frames need more than `max_bytes`.
    """

    clip_keys = True
    num_classes = None

    def __init__(
        self, path: str | os.PathLike[str], spec: ClipSpec, *, step: int = 1, max_bytes: int = 4 << 30,
        tolerance: Tolerance = DEFAULT_TOLERANCE,
    ) -> None:  # fmt: skip
        if step < 1:
            raise ValueError(f"step must be at least 1, got {step}")
        video = scan(path)
        problem = video.problem(tolerance)
        if problem is not None:
            raise problem
        grid = video.grid(spec.fps)
        spec.require(video.name, len(grid))
        size = training_size(video, spec)
        needed = len(np.unique(grid)) * size[0] * size[1] * spec.channels
        if needed > max_bytes:
            raise VideoTooLargeError(
                f"{video.name}: {len(grid)} frames of {size[0]}x{size[1]} need {needed / 2**30:.1f} GiB > "
                f"{max_bytes / 2**30:.1f} GiB; use VideoFolder, a smaller size, a lower fps or a larger max_bytes"
            )
        self.video, self.spec, self.step = video, spec, step
        stored, self._order = np.unique(grid, return_inverse=True)
        self._frames = read_frames(
            video, stored, convert=lambda frame: resize_frame(frame, size, spec.channels), tolerance=tolerance,
            deinterlace=spec.deinterlace,
        )  # fmt: skip

    def __len__(self) -> int:
        return (len(self._order) - self.spec.span) // self.step + 1

    def __getitem__(self, key: int | ClipKey) -> dict[str, Any]:
        epoch, index = key if isinstance(key, tuple) else (0, range(len(self))[key])
        draw = Draw(self.spec.seed, epoch, index, stream=2)
        stride, start = _clip_place(self.spec, index * self.step, draw)
        clip = torch.from_numpy(self._frames[self._order[self.spec.window(start, stride)]]).permute(3, 0, 1, 2)
        clip = place(clip, self.spec.size, choose_placement(draw, self._frames.shape[1:3], self.spec))
        return {"video": clip, "file": self.video.path, "index": index, "stride": stride}


def open_dataset(
    source: str | os.PathLike[str], *, frames: int, size: int | tuple[int, int], stride: int = 1,
    fps: float | None = None, channels: int = 3, fit: Fit = "cover", flip: float = 0.0, random_crop: bool = False,
    random_window: bool = True, strides: Sequence[int] = (), seed: int = 0, labels: bool = False,
    cache_dir: str | os.PathLike[str] | None = None, skip_limit: float = 0.05, tolerance: Tolerance = DEFAULT_TOLERANCE,
    max_bytes: int = 4 << 30, digits: Mapping[str, Any] | None = None, deinterlace: bool = False,
) -> VideoFolder | VideoFile | MovingDigits:  # fmt: skip
    """The data set that `source` names: a folder of videos, one video file, or the word "moving-digits".

    A file is held decoded in memory if it fits into `max_bytes`, else its clips are decoded when asked for. `digits`
    are arguments of `MovingDigits`; the others are `ClipSpec`'s and `VideoFolder`'s.

    Errors: `FileNotFoundError` for a source that is none of the three, and those of the data sets.
    """
    spec = ClipSpec(
        frames=frames, size=as_size(size), stride=stride, fps=fps, channels=channels, fit=fit, flip=flip,
        random_crop=random_crop, random_window=random_window, strides=tuple(strides), seed=seed,
        deinterlace=deinterlace,
    )  # fmt: skip
    if os.fspath(source) == "moving-digits":
        return MovingDigits(spec, labels=labels, **(digits or {}))
    path = Path(source)
    if path.is_file():
        try:
            return VideoFile(path, spec, max_bytes=max_bytes, tolerance=tolerance)
        except VideoTooLargeError as error:
            _log.warning("%s; decoding clips when they are asked for", error)
            path_or_files: Any = [path]
    elif path.is_dir():
        path_or_files = path
    else:
        raise FileNotFoundError(f"{source}: no such file or folder; or use the built-in data set 'moving-digits'")
    return VideoFolder(
        path_or_files, spec, labels=labels, cache_dir=cache_dir, skip_limit=skip_limit, tolerance=tolerance
    )
