"""One rule for the pixels of videos and pictures, held against the ffmpeg program and Pillow."""

from __future__ import annotations

import gc
import itertools
import os
import signal
import time
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch

from vdiff_fast.data import (
    ClipSpec,
    FrameCache,
    UnreadableVideoError,
    check_video,
    decode,
    demo_clip,
    read_frames,
    read_picture,
    scan,
)
from vdiff_fast.data.pixels import turn

from .conftest import Program, encode, encode_with, numbered, set_display_matrix, shown_by

ONE, UNIT = 1 << 16, 1 << 30
# (a, b, c, d) of the display matrix for EXIF's eight orientations.
WAYS = {
    1: (1, 0, 0, 1), 2: (-1, 0, 0, 1), 3: (-1, 0, 0, -1), 4: (1, 0, 0, -1),
    5: (0, 1, 1, 0), 6: (0, 1, -1, 0), 7: (0, -1, -1, 0), 8: (0, -1, 1, 0),
}  # fmt: skip


def blocks(height: int = 48, width: int = 64, *, channels: int = 3) -> np.ndarray:
    """Blocks of random colours of 8x8: nothing that chroma in half the size would blur."""
    small = np.random.default_rng(0).integers(0, 256, (height // 8, width // 8, channels), dtype=np.uint8)
    return np.kron(small, np.ones((8, 8, 1), np.uint8))


def rgb_video(path: Path) -> Path:
    """Two frames of `blocks`, without loss and without chroma that is scaled before or after a turn."""
    frames = np.repeat(blocks()[None], 2, 0)
    return encode(path, frames, codec="libx264rgb", pix_fmt="rgb24", options={"qp": "0"})


def worst(found: np.ndarray, wanted: np.ndarray) -> int:
    assert found.shape == wanted.shape
    return int(np.abs(found.astype(int) - wanted).max())


def matrix(a: int, b: int, c: int, d: int, scale: int = ONE) -> tuple[int, ...]:
    return (a * scale, b * scale, 0, c * scale, d * scale, 0, 0, 0, UNIT)


@pytest.mark.parametrize("orientation", WAYS)
def test_display_matrices_are_those_of_players(tmp_path: Path, ffmpeg: Program, orientation: int) -> None:
    path = rgb_video(tmp_path / "a.mp4")
    plain = decode(path).frames[0].numpy()
    for scale in (ONE, ONE // 2, 3 * ONE):
        set_display_matrix(path, matrix(*WAYS[orientation], scale))
        video = decode(path)
        height, width = (64, 48) if orientation >= 5 else (48, 64)
        assert (video.scan.height, video.scan.width, video.scan.orientation) == (height, width, orientation)
        assert worst(video.frames.numpy(), shown_by(ffmpeg, path, height, width)) <= 1
        assert np.array_equal(video.frames[0].numpy(), turn(plain, orientation))
    cached = FrameCache(tmp_path / "cache").frames(video.scan, ClipSpec(1, (height, width), fit="stretch"))
    assert np.array_equal(cached, video.frames.numpy())
    remark = check_video(path).reason
    assert ("mirrored" in remark) == (orientation in (2, 4, 5, 7))
    assert ("rotated by" in remark) == (orientation not in (1, 2))


@pytest.mark.parametrize("numbers", [(0,) * 9, (ONE, ONE, 0, -ONE, ONE, 0, 0, 0, UNIT), (0, 0, 0, 0, 0, 0, 9, 9, UNIT)])
def test_a_matrix_of_no_quarter_turn_is_the_nearest(tmp_path: Path, numbers: tuple) -> None:
    path = rgb_video(tmp_path / "a.mp4")
    plain = decode(path).frames
    assert torch.equal(decode(set_display_matrix(path, numbers)).frames, plain)


FORMATS = [
    "yuv420p", "yuvj420p", "yuv422p", "yuv444p", "yuv420p10le", "yuv444p12le", "yuv420p16le", "nv12", "gray",
    "gray10le", "gray16le", "bgr0", "gbrp", "gbrp10le", "gbrp16le", "rgb48le", "yuva420p", "yuva444p10le", "bgra",
    "rgba64le", "ya8",
]  # fmt: skip


@pytest.mark.parametrize("pixel_format", FORMATS)
def test_range_matrix_depth_and_alpha_are_the_programs(tmp_path: Path, ffmpeg: Program, pixel_format: str) -> None:
    """Every range and matrix that a stream can declare, in every depth: within one level of the program's picture."""
    rgba = blocks(channels=4)
    source = ("-f", "rawvideo", "-s", "64x48", "-r", "25")
    stored = ffmpeg(
        *source, "-pix_fmt", "rgba", "-i", "-", "-pix_fmt", pixel_format, "-f", "rawvideo", "-", content=rgba.tobytes()
    )
    is_rgb = pixel_format.startswith(("bg", "gb", "rg"))
    alpha = "a" in pixel_format.replace("gray", "")
    codec = "rawvideo" if pixel_format == "nv12" else "ffv1"
    matrices = ("gbr",) if is_rgb else ("unknown", "bt709", "smpte170m", "bt2020nc", "smpte240m")
    for range_, matrix_ in itertools.product(("unspecified", "tv", "pc"), matrices):
        path = tmp_path / "a.nut"
        tags = f"setparams=range={range_}:colorspace={matrix_}"
        ffmpeg(*source, "-pix_fmt", pixel_format, "-i", "-", "-vf", tags, "-c:v", codec, path, content=stored)
        found = decode(path).frames[0].numpy()
        scale = "scale=flags=bicubic+accurate_rnd+full_chroma_int"
        raw = ffmpeg(
            "-i", path, "-vf", scale, "-f", "rawvideo", "-pix_fmt", "rgba" if alpha else "rgb24", "-frames:v", "1", "-"
        )
        shown = np.frombuffer(raw, np.uint8).reshape(48, 64, -1).astype(int)
        wanted = (shown[..., :3] * shown[..., 3:] + 127) // 255 if alpha else shown
        assert worst(found, wanted) <= 1, (range_, matrix_)
        # A picture of these pixels is the video's frame.
        assert np.array_equal(read_picture(path), found)


def test_a_matrix_that_ffmpeg_cannot_convert_is_named(tmp_path: Path) -> None:
    path = encode(
        tmp_path / "a.mp4", numbered(4), codec="libx264", options={"qp": "0", "x264-params": "colormatrix=YCgCo"}
    )
    with pytest.raises(UnreadableVideoError, match=r"a\.mp4: FFmpeg cannot convert its pixels, yuv420p with matrix 8"):
        scan(path)
    assert check_video(path).verdict == "bad"


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif"])
def test_pictures_are_turned_as_exif_says(tmp_path: Path, suffix: str) -> None:
    from PIL import Image, ImageOps

    for orientation in WAYS:
        exif = Image.Exif()
        exif[0x112] = orientation
        path = tmp_path / f"{orientation}.{suffix}"
        options = (
            {"lossless": True} if suffix == "webp" else {"quality": 100, "subsampling": 0} if suffix == "jpg" else {}
        )
        Image.fromarray(blocks()).save(path, exif=exif, **options)
        with Image.open(path) as image:
            wanted = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
        assert worst(read_picture(path), wanted) <= (4 if suffix == "jpg" else 1), orientation
        assert worst(read_picture(path), turn(blocks(), orientation)) <= (8 if suffix == "jpg" else 1), orientation


def test_pictures_of_every_depth_and_transparency(tmp_path: Path, ffmpeg: Program) -> None:
    from PIL import Image

    rgb, alpha = blocks(), np.full((48, 64), 255, np.uint8)
    alpha[:, :32] = 100
    over_black = (rgb.astype(int) * alpha[..., None] + 127) // 255
    gray = rgb[..., 0]
    Image.fromarray(gray.astype(np.uint16) * 257).save(tmp_path / "gray16.png")
    Image.fromarray(np.dstack([rgb, alpha])).save(tmp_path / "rgba.png")
    Image.fromarray(np.dstack([rgb, alpha])).save(tmp_path / "rgba.webp", lossless=True, exact=True)
    Image.fromarray(np.dstack([gray, alpha])).save(tmp_path / "la.png")
    Image.fromarray(gray > 127).save(tmp_path / "one.png")
    Image.fromarray(rgb).save(tmp_path / "plain.bmp")
    palette = Image.fromarray(rgb).quantize(16, dither=Image.Dither.NONE)
    palette.save(tmp_path / "palette.png")
    palette.save(tmp_path / "clear.png", transparency=3)
    palette.save(tmp_path / "clear.gif", transparency=3)
    indexed, colours = np.asarray(palette), np.asarray(palette.convert("RGB"))
    clear = np.where((indexed == 3)[..., None], 0, colours)
    for name, format_, content in (
        ("rgb48.png", "rgb48be", rgb.astype(">u2") * 257),
        ("rgba64.png", "rgba64be", np.dstack([rgb, alpha]).astype(">u2") * 257),
    ):
        source = ("-f", "rawvideo", "-pix_fmt", format_, "-s", "64x48", "-i", "-")
        ffmpeg(*source, "-frames:v", "1", tmp_path / name, content=content.tobytes())
    gray3 = np.repeat(gray[..., None], 3, 2)
    wanted = {
        "gray16.png": gray3, "rgba.png": over_black, "rgba.webp": over_black, "plain.bmp": rgb, "palette.png": colours,
        "la.png": (gray3.astype(int) * alpha[..., None] + 127) // 255, "one.png": np.where(gray3 > 127, 255, 0),
        "clear.png": clear, "clear.gif": clear, "rgb48.png": rgb, "rgba64.png": over_black,
    }  # fmt: skip
    for name, pixels in wanted.items():
        assert worst(read_picture(tmp_path / name), pixels) <= 1, name


def test_the_command_line_reads_pictures_and_videos_alike(tmp_path: Path) -> None:
    from PIL import Image

    from vdiff_fast.cli.known import read_picture as known_picture
    from vdiff_fast.cli.known import read_video

    exif = Image.Exif()
    exif[0x112] = 7
    Image.fromarray(blocks()).save(tmp_path / "50%03d.png", exif=exif)
    path = set_display_matrix(rgb_video(tmp_path / "a.mp4"), matrix(*WAYS[7]))
    for channels in (3, 1):
        picture = known_picture(tmp_path / "50%03d.png", (channels, 64, 48))
        assert torch.equal(picture, read_video(path, (channels, 64, 48))[:, 0])
        assert picture.shape == (channels, 64, 48)


def test_what_is_no_picture(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_text("text")
    with pytest.raises(UnreadableVideoError, match=r"a\.png: not a picture that can be read; give a PNG or JPEG file"):
        read_picture(tmp_path / "a.png")
    with pytest.raises(FileNotFoundError):
        read_picture(tmp_path / "none.png")


def moving_fields(count: int, height: int = 64, width: int = 96) -> np.ndarray:
    """A bar that moves 8 pixels a frame, its lower field half of that further: RGB (T, H, W, 3)."""
    frames = np.zeros((count, height, width, 3), np.uint8)
    for i in range(count):
        frames[i, ::2, 8 * i % width :][:, :8] = 255
        frames[i, 1::2, (8 * i + 4) % width :][:, :8] = 255
    return frames


def test_interlaced_frames_are_made_whole(tmp_path: Path, ffmpeg: Program) -> None:
    """As by the program's bwdif, for whole files, windows, caches and clips; other frames stay."""
    options = ("-vf", "scale=interl=1,format=yuv422p,setfield=tff", "-c:v", "libx264", "-qp", "0", "-g", "6")
    path = encode_with(ffmpeg, tmp_path / "i.mp4", moving_fields(20), *options, "-x264-params", "tff=1")
    check = check_video(path)
    assert check.verdict == "warning"
    assert "interlaced (20 of 20 frames); --deinterlace" in check.reason
    woven, whole = (decode(path, deinterlace=d).frames.numpy() for d in (False, True))
    assert worst(woven, shown_by(ffmpeg, path, 64, 96)) <= 1
    bwdif = "bwdif=mode=send_frame:deint=interlaced"
    assert worst(whole, shown_by(ffmpeg, path, 64, 96, bwdif)) <= 1

    def between_fields(frames: np.ndarray) -> float:
        return float(np.abs(frames[:, ::2].astype(float) - frames[:, 1::2]).mean())

    assert between_fields(whole) < 0.3 * between_fields(woven)
    video = scan(path)
    for first in range(17):
        window = np.array([0, 1, 1, 3]) + first
        assert np.array_equal(read_frames(video, window, deinterlace=True), whole[window]), first
    cache = FrameCache(tmp_path / "cache")
    for deinterlace, wanted in ((True, whole), (False, woven)):
        assert np.array_equal(cache.frames(video, ClipSpec(4, (64, 96), deinterlace=deinterlace)), wanted)
    progressive = encode(tmp_path / "p.mkv", numbered(8), codec="ffv1", pix_fmt="bgr0")
    assert torch.equal(decode(progressive).frames, decode(progressive, deinterlace=True).frames)
    small = encode(tmp_path / "s.mkv", numbered(8, 3, 5), codec="ffv1", pix_fmt="bgr0")
    assert torch.equal(decode(small).frames, decode(small, deinterlace=True).frames)


def hdr(ffmpeg: Program, path: Path, y: np.ndarray, u: np.ndarray, v: np.ndarray, transfer: str) -> Path:
    """One frame of 10-bit BT.2020 in 4:4:4, limited range, as it is."""
    size = f"{y.shape[1]}x{y.shape[0]}"
    tags = f"setparams=range=tv:color_primaries=bt2020:color_trc={transfer}:colorspace=bt2020nc"
    content = b"".join(plane.astype("<u2").tobytes() for plane in (y, u, v))
    source = ("-f", "rawvideo", "-pix_fmt", "yuv444p10le", "-s", size, "-r", "25", "-i", "-")
    ffmpeg(*source, "-vf", tags, "-c:v", "ffv1", path, content=content)
    return path


@pytest.mark.parametrize(("transfer", "name"), [("smpte2084", "PQ"), ("arib-std-b67", "HLG")])
def test_high_dynamic_range_is_mapped_as_by_zscale_and_tonemap(
    tmp_path: Path, ffmpeg: Program, transfer: str, name: str
) -> None:
    ramp = np.tile(np.linspace(64, 940, 256).round(), (16, 1))
    grey = np.full((16, 256), 512)
    # Every colour of BT.2020 up to 1000 cd/m2, as ten-bit codes.
    red, green, blue = np.random.default_rng(0).uniform(0.0, 0.75, (3, 16, 256))
    luma = 0.2627 * red + 0.6780 * green + 0.0593 * blue
    y = np.concatenate([ramp, (64 + 876 * luma).round()])
    u = np.concatenate([grey, (512 + 896 * (blue - luma) / 1.8814).round()])
    v = np.concatenate([grey, (512 + 896 * (red - luma) / 1.4746).round()])
    path = hdr(ffmpeg, tmp_path / "a.mkv", y, u, v, transfer)
    chain = (
        "zscale=t=linear:npl=203:agamma=0,format=gbrpf32le,zscale=p=bt709,"
        f"tonemap=mobius:param=0.3:desat=0:peak={1000 / 203},zscale=t=bt709:m=bt709:r=pc,format=rgb24"
    )
    wanted = shown_by(ffmpeg, path, 32, 256, chain)[0]
    found = decode(path).frames[0].numpy()
    assert worst(found[:16], wanted[:16]) <= 2
    # In linear light, since near black a gamma makes levels of the last digits of a matrix.
    light, wanted_light = ((pixels / 255.0) ** 2.4 for pixels in (found[16:], wanted[16:]))
    assert np.abs(light - wanted_light).max() < 2.4 * 2 / 255
    check = check_video(path)
    assert check.verdict == "warning"
    assert f"high dynamic range ({name})" in check.reason


def test_white_paper_in_high_dynamic_range_is_bright(tmp_path: Path, ffmpeg: Program) -> None:
    """203 cd/m2 is the white of paper: 573 of PQ's 10 bits; without mapping it came out at 148 of 255."""
    flat = (np.full((8, 8), value) for value in (573, 512, 512))
    pixels = decode(hdr(ffmpeg, tmp_path / "a.mkv", *flat, "smpte2084")).frames
    assert 210 <= int(pixels.min()) <= int(pixels.max()) <= 222
    black = (np.full((8, 8), value) for value in (64, 512, 512))
    assert int(decode(hdr(ffmpeg, tmp_path / "b.mkv", *black, "smpte2084")).frames.max()) == 0


def test_a_fork_after_reading_ends(tmp_path: Path) -> None:
    """A loader's worker frees what was read before the fork; threads of FFmpeg's would be waited for, for ever."""
    from PIL import Image

    exif = Image.Exif()
    exif[0x112] = 6
    Image.fromarray(blocks()).save(tmp_path / "a.jpg", exif=exif)
    gc.disable()
    try:
        for deinterlace in (False, True):
            read_frames(scan(demo_clip()), [3, 50], deinterlace=deinterlace)
        read_picture(tmp_path / "a.jpg")
        child = os.fork()
        if not child:
            gc.collect()
            os._exit(0)
    finally:
        gc.enable()
    for _ in range(600):
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            assert status == 0
            return
        time.sleep(0.1)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    pytest.fail("the child hangs")


def test_square_pixels(tmp_path: Path) -> None:
    wide = decode(encode(tmp_path / "wide.mkv", numbered(4), codec="libx264", aspect=Fraction(2)))
    assert wide.frames.shape == (4, 32, 96, 3)
