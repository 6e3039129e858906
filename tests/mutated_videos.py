"""Damaged videos by the hundred: is every file read, or refused with a reason, and what is accepted with wrong pixels?

    python -m tests.mutated_videos --seed 7 --count 400

Files of every container that PyAV writes are damaged by a seeded generator: bytes, numbers, texts, blocks, lengths.
Each is checked, decoded, read by windows and put into a data set in a process of its own, which may crash or hang
without ending the run. A file that is accepted is compared with the whole one, frame by frame.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import select
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

FRAMES, SECONDS_PER_FILE = 24, 60.0
# A frame further than this from every frame of the whole file, in levels of 255 on average, is wrong.
WRONG = 3.0
# Beyond what the process needs for itself; the pictures are small.
MEMORY_MIB = 1500.0

# Name, codec, pixel format, encoder options.
BASES: dict[str, tuple[str, str, dict[str, str]]] = {
    "h264.mp4": ("libx264", "yuv420p", {"bf": "2", "g": "8"}),
    "mpeg4.mp4": ("mpeg4", "yuv420p", {"qscale": "3", "g": "8"}),
    "h264.mov": ("libx264", "yuv420p", {"bf": "0", "g": "12"}),
    "mjpeg.mov": ("mjpeg", "yuvj420p", {"qscale": "3"}),
    "prores.mov": ("prores_ks", "yuv422p10le", {}),
    "h264.mkv": ("libx264", "yuv420p", {"g": "8"}),
    "ffv1.mkv": ("ffv1", "yuv420p", {"level": "3"}),
    "vp8.webm": ("libvpx", "yuv420p", {"g": "8"}),
    "vp9.webm": ("libvpx-vp9", "yuv420p", {"g": "8"}),
    "mpeg4.avi": ("mpeg4", "yuv420p", {"qscale": "3", "g": "8"}),
    "mjpeg.avi": ("mjpeg", "yuvj420p", {"qscale": "3"}),
    "raw.avi": ("rawvideo", "bgr24", {}),
    "h264.ts": ("libx264", "yuv420p", {"g": "8"}),
    "mpeg2.ts": ("mpeg2video", "yuv420p", {"qscale": "3", "g": "8"}),
    "mpeg2.mpg": ("mpeg2video", "yuv420p", {"qscale": "3", "g": "8"}),
    "flv.flv": ("flv", "yuv420p", {"qscale": "3", "g": "8"}),
    "wmv.wmv": ("wmv2", "yuv420p", {"qscale": "3", "g": "8"}),
    "theora.ogv": ("libtheora", "yuv420p", {"q": "9", "g": "8"}),
    "gif.gif": ("gif", "rgb8", {}),
    "png.apng": ("apng", "rgb24", {}),
}


def pictures(count: int = FRAMES, side: int = 64) -> np.ndarray:
    """uint8 (T, H, W, 3): a block of every colour that moves over a ramp, no two frames alike."""
    ramp = np.tile(np.linspace(20, 200, side), (side, 1))
    frames = np.repeat(np.stack([(ramp + ramp.T) / 2, ramp, 220 - ramp], -1)[None], count, 0)
    for i in range(count):
        frames[i, 2 * i :][:16, i + 8 :][:, :16] = (10 * i, 255 - 10 * i, 128)
    return frames.clip(0, 255).astype(np.uint8)


def write_bases(folder: Path) -> list[Path]:
    """The whole files; a codec that this FFmpeg does not write leaves its file out."""
    import av

    from tests.data.conftest import encode

    written = []
    for name, (codec, pixel_format, options) in BASES.items():
        try:
            av.Codec(codec, "w")
        except ValueError:
            continue
        frames = pictures()
        written.append(encode(folder / name, frames, codec=codec, pix_fmt=pixel_format, options=options, gop=8))
    return written


Mutation = Callable[[bytearray, np.random.Generator], bytes]


def _where(content: bytearray, rng: np.random.Generator) -> int:
    """Anywhere, and as often in the first kilobyte, where headers are."""
    return int(rng.integers(len(content) if rng.random() < 0.5 else min(len(content), 1024)))


def _flip_bits(content: bytearray, rng: np.random.Generator) -> bytes:
    for _ in range(int(2 ** rng.uniform(0, 7))):
        content[_where(content, rng)] ^= 1 << int(rng.integers(8))
    return bytes(content)


def _random_bytes(content: bytearray, rng: np.random.Generator) -> bytes:
    for _ in range(int(2 ** rng.uniform(0, 7))):
        content[_where(content, rng)] = int(rng.integers(256))
    return bytes(content)


def _extreme_numbers(content: bytearray, rng: np.random.Generator) -> bytes:
    for _ in range(int(rng.integers(1, 4))):
        size = int(rng.choice([1, 2, 4, 8]))
        value = rng.choice([b"\0", b"\xff", b"\x7f\xff", b"\x80\0", b"\0\1"])
        at = min(_where(content, rng), max(0, len(content) - size))
        content[at : at + size] = (bytes(value) * 8)[:size]
    return bytes(content)


def _truncated(content: bytearray, rng: np.random.Generator) -> bytes:
    return bytes(content[: int(rng.uniform(0.02, 0.995) * len(content))])


def _beheaded(content: bytearray, rng: np.random.Generator) -> bytes:
    return bytes(content[int(rng.uniform(0.001, 0.5) * len(content)) :])


def _hole(content: bytearray, rng: np.random.Generator) -> bytes:
    start, length = _where(content, rng), int(2 ** rng.uniform(0, 12))
    return bytes(content[:start] + content[start + length :])


def _zeros(content: bytearray, rng: np.random.Generator) -> bytes:
    start, length = _where(content, rng), int(2 ** rng.uniform(2, 12))
    length = min(length, len(content) - start)
    content[start : start + length] = bytes(length)
    return bytes(content)


def _repeated(content: bytearray, rng: np.random.Generator) -> bytes:
    start, length = _where(content, rng), int(2 ** rng.uniform(2, 12))
    at = _where(content, rng)
    return bytes(content[:at] + content[start : start + length] + content[at:])


def _swapped(content: bytearray, rng: np.random.Generator) -> bytes:
    size = int(2 ** rng.uniform(2, 10))
    first, second = sorted(int(i) for i in rng.integers(0, max(1, len(content) - size), 2))
    if second - first >= size:
        content[first : first + size], content[second : second + size] = (
            content[second : second + size],
            content[first : first + size],
        )
    return bytes(content)


def _foreign_texts(content: bytearray, rng: np.random.Generator) -> bytes:
    """Letters of runs of ASCII become bytes that no UTF-8 text has."""
    letters = [i for i in range(min(len(content), 4096) - 3) if bytes(content[i : i + 3]).isalpha()]
    for i in rng.choice(letters, min(len(letters), 8), replace=False) if letters else []:
        content[int(i)] = int(rng.integers(0x80, 0x100))
    return bytes(content)


MUTATIONS: tuple[Mutation, ...] = (
    _flip_bits, _random_bytes, _extreme_numbers, _truncated, _beheaded, _hole, _zeros, _repeated, _swapped,
    _foreign_texts,
)  # fmt: skip


def write_mutated(bases: list[Path], folder: Path, count: int, seed: int) -> list[Path]:
    """`count` files, the bases and mutations in turn, named NUMBER-MUTATION-BASE."""
    paths = []
    for i in range(count):
        base = bases[i % len(bases)]
        mutation = MUTATIONS[(i + i // len(bases)) % len(MUTATIONS)]
        content = mutation(bytearray(base.read_bytes()), np.random.default_rng([seed, i]))
        path = folder / f"{i:05d}-{mutation.__name__[1:]}-{base.name}"
        path.write_bytes(content)
        paths.append(path)
    return paths


def examine(path: Path, whole: np.ndarray) -> dict[str, Any]:
    """What becomes of one file: checked, decoded, read by windows, made a data set of.

    Damage that a decoder conceals by its number of threads, or by what lies in memory, shows only when frames are
    compared with the scan: such a file is "refused later".
    """
    from vdiff_fast import data

    check = data.check_video(path)
    result: dict[str, Any] = {"verdict": check.verdict, "reason": check.reason, "decoded": check.decoded}
    if check.verdict == "bad":
        return result
    try:
        return result | _read(path, whole)
    except data.VideoError as error:
        return result | {"verdict": "refused later", "reason": str(error)}


def _read(path: Path, whole: np.ndarray) -> dict[str, Any]:
    from vdiff_fast import data

    video = data.scan(path)
    found = data.decode(video).frames.numpy()
    stored = data.read_frames(video, np.arange(video.decoded))
    result: dict[str, Any] = {"frames": len(stored), "grid": len(found)}
    result["distances"] = [round(_distance(frame, whole), 2) for frame in stored]
    for first in range(1, len(stored) - 2, 5):
        window = np.array([first, first + 1, first + 2])
        if not np.array_equal(data.read_frames(video, window), stored[window]):
            result["window"] = first
    spec = data.ClipSpec(frames=min(4, len(found)), size=(16, 16), fps=12.5)
    if len(video.grid(12.5)) >= spec.span:
        folder = data.VideoFolder([path], spec)
        assert len(folder) <= len(stored)
        folder[len(folder) - 1]
    return result


def decode_whole(path: Path) -> np.ndarray:
    """The frames of a file that is not damaged."""
    from vdiff_fast import data

    return data.decode(path).frames.numpy()


def _distance(frame: np.ndarray, whole: np.ndarray) -> float:
    """To the nearest frame of the whole file; 255 for another size."""
    if frame.shape != whole.shape[1:]:
        return 255.0
    return float(np.abs(whole.astype(np.int16) - frame).mean((1, 2, 3)).min())


def _serve(paths: Iterable[str], bases: Path) -> None:
    """Examine files and print a line of JSON before and after each."""
    import torch

    torch.set_num_threads(1)
    wholes: dict[str, np.ndarray] = {}
    for name in paths:
        path = Path(name)
        base = path.name.split("-", 2)[2]
        if base not in wholes:
            wholes[base] = decode_whole(bases / base)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        print(json.dumps({"begins": name}), flush=True)
        try:
            result = examine(path, wholes[base])
        except Exception as error:  # of any type, and a fault: a damaged file may raise a VideoError alone
            result = {"verdict": "error", "reason": f"{type(error).__name__}: {error}"}
        result["mib"] = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
        print(json.dumps(result | {"path": name}), flush=True)


def examine_all(
    paths: list[Path], command: Sequence[str], *, jobs: int = 1, seconds: float = SECONDS_PER_FILE
) -> Iterator[dict[str, Any]]:
    """The result of each file, of processes that `command` starts with the files as arguments (see `_serve`).

    One that dies, or says nothing for so many seconds, counts as the file's crash or hang.
    """
    shares = [paths[i::jobs] for i in range(jobs)]
    running = [_Examiner(share, list(command), seconds) for share in shares if share]
    while running:
        ready, _, _ = select.select([examiner.output for examiner in running], [], [], 1.0)
        for examiner in list(running):
            yield from examiner.results(examiner.output in ready)
            if examiner.done:
                running.remove(examiner)


@dataclass
class _Examiner:
    """One process at a time for a share of the files."""

    left: list[Path]
    command: list[str]
    seconds: float
    waited: float = 0.0
    current: str | None = None
    buffered: bytes = b""
    process: Any = field(default=None, repr=False)

    def __post_init__(self) -> None:
        self._start()

    def _start(self) -> None:
        command = [*self.command, *map(str, self.left)]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        self.waited, self.current = 0.0, None

    @property
    def output(self) -> int:
        return self.process.stdout.fileno()

    @property
    def done(self) -> bool:
        return not self.left and self.process.poll() is not None

    def results(self, ready: bool) -> Iterator[dict[str, Any]]:
        if not ready:
            self.waited += 1.0
            if self.waited >= self.seconds:
                self.process.kill()
            return
        chunk = os.read(self.output, 1 << 16)
        self.waited = 0.0
        if not chunk:
            yield from self._ended()
        *lines, self.buffered = (self.buffered + chunk).split(b"\n")
        for line in lines:
            message = json.loads(line)
            if "begins" in message:
                self.current = message["begins"]
            else:
                self.left = [path for path in self.left if str(path) != message["path"]]
                self.current = None
                yield message

    def _ended(self) -> Iterator[dict[str, Any]]:
        code = self.process.wait()
        if self.left:
            lost = self.current or str(self.left[0])
            self.left = [path for path in self.left if str(path) != lost]
            kind = "hang" if code == -9 else "crash"
            yield {"verdict": kind, "reason": f"the process ended with {code}", "path": lost, "mib": 0.0}
        self.buffered = b""
        if self.left:
            self._start()


def faults(results: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """What must not be: a crash, a hang, an exception of another kind, much memory, a window unlike the whole."""
    return [
        result
        for result in results
        if result["verdict"] in ("crash", "hang", "error") or result["mib"] > MEMORY_MIB or "window" in result
    ]


def report(results: list[dict[str, Any]]) -> str:
    """Counts, faults, and the files that were accepted with wrong pixels."""
    verdicts = Counter(result["verdict"] for result in results)
    accepted = [result for result in results if "distances" in result]
    wrong = [result for result in accepted if max(result["distances"]) > WRONG]
    lines = [
        f"{len(results)} files: " + ", ".join(f"{count} {verdict}" for verdict, count in sorted(verdicts.items())),
        f"{len(accepted)} accepted, {len(wrong)} of them with wrong pixels; {len(faults(results))} faults",
    ]
    lines += [f"FAULT {json.dumps(fault)}" for fault in faults(results)]
    for result in wrong:
        distances = result["distances"]
        count = sum(distance > WRONG for distance in distances)
        name, reason = Path(result["path"]).name, result["reason"]
        lines.append(
            f"wrong: {name}: {count} of {len(distances)} frames, up to {max(distances):.1f} levels  ({reason})"
        )
    return "\n".join(lines)


def run(folder: Path, count: int, seed: int, *, jobs: int = 1) -> list[dict[str, Any]]:
    """Write, damage and examine `count` files below `folder`."""
    bases = folder / "whole"
    mutated = folder / "mutated"
    bases.mkdir(parents=True)
    mutated.mkdir()
    paths = write_mutated(write_bases(bases), mutated, count, seed)
    command = [sys.executable, "-m", "tests.mutated_videos", "--serve", str(bases)]
    return list(examine_all(paths, command, jobs=jobs))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=400)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--folder", type=Path, default=None, help="keep the files here")
    parser.add_argument("--serve", nargs="+", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.serve:
        _serve(given.serve[1:], Path(given.serve[0]))
        return
    folder = given.folder or Path(tempfile.mkdtemp())
    results = run(folder, given.count, given.seed, jobs=given.jobs)
    print(report(results))
    sys.exit(bool(faults(results)))


if __name__ == "__main__":
    main()
