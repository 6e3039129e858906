"""Ranges, upscaling, smoothing and grids."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from vdiff_fast.data import VideoWriteError, grid, postprocess, smooth_temporal, to_uint8, upscale


def clip(*shape: int) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_clamp() -> None:
    values = torch.tensor([-2.0, -1.0, -0.5, 0.0, 0.5, 1.0, 2.0])
    assert to_uint8(values).tolist() == [0, 0, 64, 128, 191, 255, 255]
    every = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(to_uint8(every.float() / 127.5 - 1), every)
    assert to_uint8(every).data_ptr() == every.data_ptr()
    assert torch.equal(to_uint8((every.float() / 127.5 - 1).double()), every)


def test_what_has_no_pixels() -> None:
    with pytest.raises(VideoWriteError, match="1 of 3 values are NaN or Inf"):
        to_uint8(torch.tensor([0.0, float("nan"), 1.0]))
    with pytest.raises(VideoWriteError, match=r"must be uint8 .* got torch\.int64"):
        to_uint8(torch.zeros(3, dtype=torch.int64))
    with pytest.raises(ValueError, match="'clamp' or 'dynamic'"):
        to_uint8(torch.zeros(3), range="auto")  # type: ignore[arg-type]


def test_dynamic_range_is_per_clip_and_the_same_for_all_frames() -> None:
    faint = clip(1, 3, 4, 8, 8) * 0.1 + 0.3
    bright = clip(1, 3, 4, 8, 8) * 3
    both = to_uint8(torch.cat([faint, bright]), range="dynamic", percentile=0.0)
    for video, source in zip(both, (faint, bright)):
        assert (video.min(), video.max()) == (0, 255)
        order = source[0].flatten().argsort()
        assert (video.flatten()[order].int().diff() >= 0).all()
    outlier = clip(3, 4, 32, 32)
    outlier[0, 0, 0, 0] = 1e4
    assert to_uint8(outlier, range="dynamic").float().mean() == pytest.approx(127.5, abs=3)
    assert to_uint8(torch.zeros(3, 2, 4, 4), range="dynamic").shape == (3, 2, 4, 4)
    with pytest.raises(ValueError, match="percentile"):
        to_uint8(outlier, range="dynamic", percentile=50)


def test_upscale() -> None:
    from PIL import Image

    video = to_uint8(clip(2, 3, 4, 5, 6))
    big = upscale(video, 3, mode="nearest")
    assert big.shape == (2, 3, 4, 15, 18)
    assert torch.equal(big, video.repeat_interleave(3, -1).repeat_interleave(3, -2))
    smooth = upscale(video[0], (10, 12))
    assert smooth.shape == (3, 4, 10, 12)
    assert smooth.dtype == torch.uint8
    for plane, source in zip(smooth.flatten(0, 1), video[0].flatten(0, 1)):
        # In Pillow's float mode, whose passes are not cut to [0, 255] in between.
        pillow = np.asarray(Image.fromarray(source.float().numpy()).resize((12, 10), Image.Resampling.BICUBIC))
        assert np.abs(plane.numpy() - pillow.clip(0, 255)).max() <= 0.51
    assert upscale(clip(3, 2, 4, 4), 4).abs().max() <= 1
    assert upscale(video, 1) is video
    for to in (0, (0, 4)):
        with pytest.raises(ValueError, match="must be positive"):
            upscale(video, to)
    with pytest.raises(ValueError, match="'nearest' or 'bicubic'"):
        upscale(video, 2, mode="linear")  # type: ignore[arg-type]


def test_smoothing() -> None:
    video = clip(3, 9, 4, 4)
    assert smooth_temporal(video, 0) is video
    still = video[:, :1].expand(3, 9, 4, 4)
    assert torch.allclose(smooth_temporal(still, 2.0), still, atol=1e-6)
    impulse = torch.zeros(1, 9, 1, 1)
    impulse[0, 4] = 1
    response = smooth_temporal(impulse, 1.0).flatten()
    exact = torch.exp(-(torch.arange(-3, 4).float() ** 2) / 2)
    assert torch.allclose(response[1:8], exact / exact.sum(), atol=1e-6)
    assert torch.equal(response, response.flip(0))
    assert smooth_temporal(to_uint8(video), 0.5).dtype == torch.uint8
    batch = torch.stack([video, -video])
    assert torch.allclose(smooth_temporal(batch, 1.0)[1], -smooth_temporal(video, 1.0), atol=1e-6)
    with pytest.raises(ValueError, match="sigma must be 0"):
        smooth_temporal(video, -1)


def test_postprocess_order_and_defaults() -> None:
    video = clip(2, 3, 5, 4, 4)
    assert torch.equal(postprocess(video), to_uint8(video))
    full = postprocess(video, range="dynamic", scale=2, mode="nearest", smoothing=1.0)
    expected = upscale(to_uint8(smooth_temporal(video, 1.0), range="dynamic"), 2, mode="nearest")
    assert torch.equal(full, expected)


def test_grid() -> None:
    videos = torch.arange(5, dtype=torch.uint8).view(5, 1, 1, 1, 1).expand(5, 3, 2, 4, 6)
    sheet = grid(videos, padding=1, background=99)
    assert sheet.shape == (3, 2, 2 * 5 + 1, 3 * 7 + 1)
    assert sheet[0, 0, 2, 2::7].tolist() == [0, 1, 2]
    assert sheet[0, 0, 7, 2::7].tolist() == [3, 4, 99]
    assert (sheet[..., 0, :] == 99).all()
    assert grid(videos, columns=9, padding=0).shape == (3, 2, 4, 30)
    with pytest.raises(VideoWriteError, match="takes uint8"):
        grid(videos.float())
    with pytest.raises(VideoWriteError, match="needs samples and columns"):
        grid(videos, columns=0)
