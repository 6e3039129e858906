"""Decoded frames on disk at training resolution: decode a video once, then a clip is a slice of a memory map."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vdiff_fast._files import whole_file, write_text
from vdiff_fast.data import errors
from vdiff_fast.data.container import decode_packets, open_video
from vdiff_fast.data.deinterlace import deinterlaced
from vdiff_fast.data.errors import TruncatedVideoError, VideoError
from vdiff_fast.data.scan import Tolerance, VideoScan, scan
from vdiff_fast.data.transforms import ClipSpec, resize_frame, resized_size

if TYPE_CHECKING:
    from av.video.frame import VideoFrame

# Raised when the meaning of stored frames or scans changes; old entries are then never found again.
_VERSION = 4
_ARRAYS = {"times": np.float64, "pts": np.int64, "sums": np.uint32}


def training_size(video: VideoScan, spec: ClipSpec) -> tuple[int, int]:
    """(height, width) at which a video is kept: resized to fit, not yet cropped, so that crops can still be drawn."""
    return resized_size(video.height, video.width, spec.size, spec.fit)


class FrameCache:
    """A folder of `<key>.npy` (uint8 (T, H, W, C), every frame of the file) and `<key>.json` (scans).

    The key hashes the file's resolved path, size and modification time, and for frames the resized size, the channels
    and whether interlaced frames were made whole.
    So windows, strides, rates, crops and flips may change without decoding again, and a changed file is never served
    stale. Entries are written to a temporary name and renamed: readers and other writers see all of one or nothing.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)

    def key(self, path: str | os.PathLike[str], *parameters: Any) -> str:
        """Hex digest that names an entry."""
        state = os.stat(path)
        identity = [_VERSION, os.path.realpath(path), state.st_size, state.st_mtime_ns, *parameters]
        return hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:32]

    def scan(self, path: str | os.PathLike[str], *, threads: int = 0) -> VideoScan:
        """`scan(path)`, remembered, also where it failed."""
        entry = self.folder / f"{self.key(path, 'scan')}.json"
        if entry.exists():
            return _scan_from_json(json.loads(entry.read_text()), os.fspath(path))
        try:
            result = scan(path, threads=threads)
            content = _scan_to_json(result)
        except VideoError as error:
            write_text(entry, json.dumps({"error": type(error).__name__, "message": str(error)}))
            raise
        write_text(entry, json.dumps(content))
        return result

    def frames(self, video: VideoScan, spec: ClipSpec, *, threads: int = 0) -> np.ndarray:
        """All frames of a file as a read-only memory map (T, H, W, C), decoded and stored first where missing."""
        entry = self._frames_entry(video, spec)
        if not entry.exists():
            self._build(entry, video, spec, threads)
        return np.load(entry, mmap_mode="r")

    def has_frames(self, video: VideoScan, spec: ClipSpec) -> bool:
        """Whether `frames` would be served from disk."""
        return self._frames_entry(video, spec).exists()

    def size_bytes(self) -> int:
        """Bytes on disk in this folder."""
        return sum(entry.stat().st_size for entry in self.folder.iterdir() if entry.is_file())

    def _frames_entry(self, video: VideoScan, spec: ClipSpec) -> Path:
        kind = (*training_size(video, spec), spec.channels, spec.deinterlace)
        return self.folder / f"{self.key(video.path, 'frames', *kind)}.npy"

    def _verified(self, video: VideoScan, frames: Iterable[tuple[int, VideoFrame]]) -> Iterator[tuple[int, VideoFrame]]:
        """The frames, each compared with the scan unless the file is known to be damaged."""
        whole = video.problem(Tolerance(1.0, 0.0)) is None
        for index, frame in frames:
            if whole and index < video.decoded and not video.saw(index, frame):
                raise video.lost(index)
            yield index, frame

    def _build(self, entry: Path, video: VideoScan, spec: ClipSpec, threads: int) -> None:
        """Stream the file to the disk, one frame in memory at a time.

        By plain writes: where a memory map meets a full disk, the process is killed by a signal.
        """
        size = training_size(video, spec)
        shape = (video.decoded, *size, spec.channels)
        with whole_file(entry) as temporary, open(temporary, "wb") as file:
            np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
            count = 0
            with open_video(video.path, threads=threads) as (container, stream):
                frames = self._verified(video, enumerate(decode_packets(container, stream)))
                for _, frame in deinterlaced(frames) if spec.deinterlace else frames:
                    if count < video.decoded:
                        file.write(resize_frame(video.to_rgb(frame), size, spec.channels).tobytes())
                    count += 1
            if count != video.decoded:
                raise TruncatedVideoError(f"{video.name}: decoded {count} frames, {video.decoded} when scanned")


def _scan_to_json(video: VideoScan) -> dict[str, Any]:
    return asdict(video) | {name: getattr(video, name).tolist() for name in _ARRAYS}


def _scan_from_json(content: dict[str, Any], path: str) -> VideoScan:
    if "error" in content:
        raise getattr(errors, content["error"])(content["message"])
    arrays = {name: np.array(content[name], dtype=dtype) for name, dtype in _ARRAYS.items()}
    return VideoScan(**(content | arrays | {"path": path}))
