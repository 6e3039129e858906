"""Check videos before training on them: what each file declares, what it gives, and a verdict with a reason."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from vdiff_fast._files import printable
from vdiff_fast.data.dataset import SkipPolicy
from vdiff_fast.data.errors import VideoError
from vdiff_fast.data.find import find_videos, unique_files
from vdiff_fast.data.scan import DEFAULT_TOLERANCE, Tolerance, VideoScan, scan
from vdiff_fast.data.transforms import ClipSpec

Verdict = Literal["ok", "warning", "bad"]


@dataclass(frozen=True)
class FileCheck:
    """One file. Numbers are None where the file could not be read; `declared` also where the header has no count."""

    path: str
    verdict: Verdict
    reason: str
    declared: int | None = None
    decoded: int | None = None
    corrupt: int | None = None
    width: int | None = None
    height: int | None = None
    fps: float | None = None
    duration: float | None = None
    codec: str | None = None


@dataclass(frozen=True)
class CheckReport:
    """All files in order. `ok` says whether training would start: a usable file, and no more bad ones than `limit`."""

    files: list[FileCheck]
    limit: float = 0.05

    @property
    def bad(self) -> list[FileCheck]:
        return [file for file in self.files if file.verdict == "bad"]

    @property
    def warnings(self) -> list[FileCheck]:
        return [file for file in self.files if file.verdict == "warning"]

    @property
    def ok(self) -> bool:
        return len(self.bad) < len(self.files) and len(self.bad) <= self.limit * len(self.files)

    def summary(self) -> str:
        """ "5000 files, 4988 usable (3 with a warning), 12.3 h; 12 of 5000 skipped, 0.24 %; limit 5 %"."""
        usable = len(self.files) - len(self.bad)
        seconds = sum(file.duration or 0.0 for file in self.files if file.verdict != "bad")
        length = f"{seconds:.1f} s" if seconds < 600 else f"{seconds / 3600:.1f} h"
        skipped = SkipPolicy(len(self.files), self.limit).summary(len(self.bad))
        return f"{len(self.files)} files, {usable} usable ({len(self.warnings)} with a warning), {length}; {skipped}"

    def format(self, *, only_problems: bool = False) -> str:
        """A table in plain text, then the summary."""
        shown = [file for file in self.files if not only_problems or file.verdict != "ok"]
        header = ("verdict", "declared", "decoded", "corrupt", "size", "fps", "seconds", "file")
        rows = [header, *(_row(file) for file in shown)] if shown else []
        widths = [max(len(row[i]) for row in rows) for i in range(len(header) - 1)] if rows else []
        lines = ["  ".join([*(cell.ljust(w) for cell, w in zip(row, widths)), row[-1]]) for row in rows]
        return "\n".join([*lines, self.summary()])

    def to_json(self) -> dict[str, Any]:
        """Plain dictionaries and numbers."""
        return {"files": [asdict(file) for file in self.files], "limit": self.limit, "ok": self.ok}


def check_videos(
    paths: str | os.PathLike[str] | Iterable[str | os.PathLike[str]], *, spec: ClipSpec | None = None,
    tolerance: Tolerance = DEFAULT_TOLERANCE, limit: float = 0.05, threads: int | None = None,
    progress: Callable[[Iterator[FileCheck], int], Iterator[FileCheck]] | None = None,
) -> CheckReport:  # fmt: skip
    """Decode every file (folders: every video below) from end to end and judge it as `VideoFolder` would.

    With `spec`, a video too short for one clip is bad as well. Nothing raises for a bad file, nor for a path that does
    not exist. `progress(iterator, total)` may wrap the work, as tqdm does.
    """
    sources = [paths] if isinstance(paths, (str, os.PathLike)) else list(paths)
    found = [file for source in sources for file in (find_videos(source) if Path(source).is_dir() else [Path(source)])]
    files = unique_files(found)
    with ThreadPoolExecutor(threads or min(8, os.cpu_count() or 1)) as pool:
        results = pool.map(lambda path: check_video(path, spec=spec, tolerance=tolerance), files)
        return CheckReport(list(progress(results, len(files)) if progress else results), limit)


def check_video(
    path: str | os.PathLike[str], *, spec: ClipSpec | None = None, tolerance: Tolerance = DEFAULT_TOLERANCE
) -> FileCheck:
    """The check of one file."""
    try:
        video = scan(path, threads=1)
        problem = video.problem(tolerance)
        if problem is None and spec is not None:
            spec.require(video.name, len(video.grid(spec.fps)))
    except VideoError as error:
        return FileCheck(os.fspath(path), "bad", str(error))
    except OSError as error:
        return FileCheck(os.fspath(path), "bad", f"{printable(Path(path).name)}: {error.strerror}")
    remarks = _remarks(video)
    verdict: Verdict = "bad" if problem else "warning" if remarks else "ok"
    return FileCheck(
        os.fspath(path), verdict, str(problem) if problem else "; ".join(remarks), video.declared, video.decoded,
        video.corrupt, video.width, video.height, video.fps, video.duration, video.codec,
    )  # fmt: skip


def _remarks(video: VideoScan) -> list[str]:
    """What is unusual about a usable file, and what is done about it."""
    remarks = [video.note] if video.note else []
    if video.declared and video.declared - video.hidden != video.decoded:
        there = "shown" if video.hidden else "stored"
        remarks.append(f"header declares {video.declared} frames, {video.decoded} are {there}; time stamps are used")
    elif not video.declared and video.hidden:
        remarks.append(f"begins inside a group of pictures; its first {video.hidden} frames cannot be shown")
    if video.corrupt or video.failed_packets:
        remarks.append(video.counts())
    if video.variable:
        remarks.append("variable frame rate; resampled by its time stamps")
    if video.orientation != 1:
        mirrored = "mirrored" + (" and " if video.rotation else "") if video.mirrored else ""
        turned = f"rotated by {video.rotation} degrees" if video.rotation else ""
        remarks.append(f"{mirrored}{turned} when shown")
    if video.transfer:
        remarks.append(f"high dynamic range ({video.transfer}); brightness is mapped to standard range")
    if video.interlaced:
        remarks.append(
            f"interlaced ({video.interlaced} of {video.decoded} frames); --deinterlace (data.deinterlace) makes whole "
            "pictures of fields"
        )
    if video.width % 2 or video.height % 2:
        remarks.append(f"odd size {video.width}x{video.height}")
    return remarks


def _row(file: FileCheck) -> tuple[str, ...]:
    numbers = [file.declared, file.decoded, file.corrupt]
    size = f"{file.width}x{file.height}" if file.width else "-"
    fps = f"{file.fps:.3f}".rstrip("0").rstrip(".") if file.fps else "-"
    seconds = f"{file.duration:.2f}" if file.duration else "-"
    path = printable(file.path)
    reason = f"{path}  ({file.reason})" if file.reason else path
    return (file.verdict, *("-" if n is None else str(n) for n in numbers), size, fps, seconds, reason)
