"""Files that play anywhere: probed, decoded again, compared in colour and time."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import numpy as np
import pytest
import torch

from vdiff_fast.data import (
    VideoPaddedWarning,
    VideoWriteError,
    contact_sheet,
    decode,
    demo_clip,
    write_png,
    write_video,
)

SOLID = [
    (255, 0, 0),
    (0, 255, 0),
    (0, 0, 255),
    (255, 255, 255),
    (0, 0, 0),
    (128, 128, 128),
    (200, 100, 50),
    (30, 90, 160),
]


def colour_bars(frames: int = 4, side: int = 16) -> torch.Tensor:
    """uint8 (3, T, side, 8 * side): eight solid colours."""
    bars = torch.tensor(SOLID, dtype=torch.uint8).repeat_interleave(side, 0)
    return bars.T[:, None, None].expand(3, frames, side, len(bars)).contiguous()


def psnr(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(10 * torch.log10(255**2 / ((a.double() - b.double()) ** 2).mean()))


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv", ".m4v"])
def test_h264_plays_anywhere(tmp_path: Path, suffix: str) -> None:
    import av

    source = decode(demo_clip(), layout="CTHW").frames
    written = write_video(source, tmp_path / f"deep/er/a{suffix}", fps=24)
    assert (written.frames, written.width, written.height, written.note) == (72, 128, 128, "")
    with av.open(str(written.path)) as container:
        stream = container.streams.video[0]
        context = stream.codec_context
        assert (context.codec.name, context.pix_fmt) == ("h264", "yuv420p")
        # BT.709 and limited range are written down, so that no player has to guess.
        assert (context.colorspace, context.color_range, context.color_primaries, context.color_trc) == (1, 1, 1, 1)
        assert stream.average_rate == 24
    if suffix != ".mkv":
        content = written.path.read_bytes()
        assert 0 < content.index(b"moov") < content.index(b"mdat")
    back = decode(written.path, layout="CTHW").frames
    assert back.shape == source.shape
    assert psnr(back, source) > 33
    assert (back.double() - source.double()).mean((1, 2, 3)).abs().max() < 0.6


@pytest.mark.parametrize("suffix", [".mp4", ".gif"])
def test_solid_colours_come_back(tmp_path: Path, suffix: str) -> None:
    bars = colour_bars()
    back = decode(write_video(bars, tmp_path / f"a{suffix}").path, layout="CTHW").frames
    centres = slice(8, None, 16)
    difference = (back[..., 8, centres].int() - bars[..., 8, centres].int()).abs()
    assert difference.max() <= 4


def test_gif_is_close_to_its_source_loops_and_keeps_time(tmp_path: Path) -> None:
    from PIL import Image

    source = decode(demo_clip(), layout="CTHW").frames[:, :25]
    path = write_video(source, tmp_path / "a.gif", fps=25).path
    back = decode(path, layout="CTHW").frames
    assert psnr(back, source) > 30
    assert (back.double() - source.double()).mean((1, 2, 3)).abs().max() < 1.5
    with Image.open(path) as image:
        assert image.n_frames == 25
        assert image.info["loop"] == 0
        assert image.info["duration"] == 40
        assert image.convert("RGB").size == (128, 128)
    thirty = write_video(source, tmp_path / "b.gif", fps=30).path
    assert decode(thirty).scan.duration == pytest.approx(25 / 30, abs=0.02)


@pytest.mark.parametrize(("loop", "stored"), [(0, 0), (1, None), (3, 2)])
def test_gif_repetitions(tmp_path: Path, loop: int, stored: int | None) -> None:
    from PIL import Image

    with Image.open(write_video(colour_bars(), tmp_path / "a.gif", loop=loop).path) as image:
        assert image.info.get("loop") == stored


def test_gif_of_still_and_grey_frames(tmp_path: Path) -> None:
    """Repeated frames are kept, one by one."""
    still = torch.full((1, 5, 9, 11), 77, dtype=torch.uint8)
    back = decode(write_video(still, tmp_path / "a.gif", fps=10).path)
    assert back.frames.shape == (5, 9, 11, 3)
    assert (back.frames.int() - 77).abs().max() <= 1


def test_odd_sizes_are_padded_by_one_pixel_and_said(tmp_path: Path) -> None:
    source = decode(demo_clip(), layout="CTHW").frames[:, :6, :63, :35]
    with pytest.warns(VideoPaddedWarning, match=r"a\.mp4: 35x63 padded to 36x64; H\.264 in yuv420p needs even sizes"):
        written = write_video(source, tmp_path / "a.mp4")
    assert "padded to 36x64" in written.note
    back = decode(written.path, layout="CTHW").frames
    assert back.shape == (3, 6, 64, 36)
    assert psnr(back[..., :63, :35], source) > 30
    # The edge is repeated, so no black line shows.
    assert (back[..., 35].int() - back[..., 34].int()).abs().double().mean() < 8


def test_floats_gray_and_batches(tmp_path: Path) -> None:
    bars = colour_bars()
    unit = bars.float() / 127.5 - 1
    floats = decode(write_video(unit * 1.0, tmp_path / "f.mp4").path).frames
    assert torch.equal(floats, decode(write_video(bars, tmp_path / "u.mp4").path).frames)
    gray = decode(write_video(bars[1:2], tmp_path / "g.mp4").path).frames
    assert (gray.float() - gray.float().mean(-1, keepdim=True)).abs().max() <= 2
    batch = decode(write_video(torch.stack([bars] * 4), tmp_path / "b.mp4").path).frames
    assert batch.shape == (4, 2 * 18 + 2, 2 * 130 + 2, 3)


@pytest.mark.parametrize("fps", [8, 12.5, 24000 / 1001, 30])
def test_rates(tmp_path: Path, fps: float) -> None:
    video = decode(write_video(colour_bars(12), tmp_path / "a.mp4", fps=fps).path)
    assert video.fps == pytest.approx(fps, rel=1e-4)
    assert len(video.frames) == 12


def test_what_cannot_be_written(tmp_path: Path) -> None:
    bars = colour_bars()
    for video, name, options, message in (
        (bars, "a.avi", {}, r"a\.avi: cannot write \.avi; choose one of \.mp4"),
        (bars, "a", {}, "a file without a suffix"),
        (bars, "a.mp4", {"fps": 0}, "fps must be positive, got 0"),
        (bars, "a.gif", {"fps": 60}, "GIF viewers play at most 50 fps, got 60; use .mp4"),
        (bars[:2], "a.mp4", {}, r"1 or 3 channels, got \(2, 4, 16, 128\)"),
        (bars[0], "a.mp4", {}, r"got \(4, 16, 128\)"),
        (bars[:, :0], "a.mp4", {}, "nothing to write"),
        (bars.float() / 0, "a.mp4", {}, "NaN or Inf"),
    ):
        with pytest.raises(VideoWriteError, match=message):
            write_video(video, tmp_path / name, **options)
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import vdiff_fast.data.write as module

    path = tmp_path / "a.mp4"
    write_video(colour_bars(), path)
    before = path.read_bytes()

    def fail(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "_write_h264", fail)
    with pytest.raises(KeyboardInterrupt):
        write_video(colour_bars(9), path)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["a.mp4"]


def test_results_are_readable_by_others(tmp_path: Path) -> None:
    umask = os.umask(0o022)
    try:
        path = write_video(colour_bars(), tmp_path / "a.gif").path
    finally:
        os.umask(umask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o644


def test_contact_sheet(tmp_path: Path) -> None:
    from PIL import Image

    values = torch.arange(20, dtype=torch.uint8) * 10
    videos = torch.stack([values, values + 5]).view(2, 1, 20, 1, 1).expand(2, 3, 20, 6, 8)
    path = contact_sheet(videos, tmp_path / "c.png", columns=5, padding=1, background=0)
    with Image.open(path) as image:
        pixels = np.asarray(image)
    assert pixels.shape == (2 * 7 + 1, 5 * 9 + 1, 3)
    assert pixels[3, 4::9, 0].tolist() == [0, 50, 100, 140, 190]
    assert pixels[10, 4::9, 1].tolist() == [5, 55, 105, 145, 195]
    assert contact_sheet(videos[0].float() / 127.5 - 1, tmp_path / "one.png", columns=99).exists()
    with pytest.raises(VideoWriteError, match="at least one column"):
        contact_sheet(videos, path, columns=0)


def test_png(tmp_path: Path) -> None:
    from PIL import Image

    picture = torch.randint(0, 256, (3, 5, 7), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    write_png(picture, tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as image:
        assert np.array_equal(np.asarray(image), picture.permute(1, 2, 0).numpy())
