"""Convolutions over views: equal to conv3d, channels-last in and out, no copy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from vdiff_fast import layout
from vdiff_fast.nn import FrameConv2d, TemporalConv
from vdiff_fast.nn.convolution import upsample_nearest

SHAPES = [(2, 6, 4, 8, 10), (1, 6, 1, 8, 10), (2, 6, 1, 1, 1), (1, 6, 3, 2, 2)]


def clip(shape: tuple[int, ...]) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(shape, generator=generator, dtype=torch.float64)
    return x.contiguous(memory_format=torch.channels_last_3d)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("stride", [1, 2])
def test_frame_convolution_is_a_1x3x3_convolution(shape: tuple[int, ...], stride: int) -> None:
    conv, x = FrameConv2d(6, 5, 3, stride=stride, padding=1).double(), clip(shape)
    expected = F.conv3d(x, conv.weight[:, :, None], conv.bias, stride=(1, stride, stride), padding=(0, 1, 1))
    y = conv(x)
    torch.testing.assert_close(y, expected)
    assert layout.is_channels_last(y)


@pytest.mark.parametrize("shape", SHAPES)
def test_upsampling_repeats_every_pixel(shape: tuple[int, ...]) -> None:
    x = clip(shape)
    y = upsample_nearest(x)
    assert torch.equal(y, x.repeat_interleave(2, dim=3).repeat_interleave(2, dim=4))
    assert layout.is_channels_last(y)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kernel_size", [1, 3, 5])
def test_temporal_convolution_is_a_kx1x1_convolution(shape: tuple[int, ...], kernel_size: int) -> None:
    conv, x = TemporalConv(6, 5, kernel_size).double(), clip(shape)
    expected = F.conv3d(x, conv.weight[..., None], conv.bias, padding=(kernel_size // 2, 0, 0))
    y = conv(x)
    torch.testing.assert_close(y, expected)
    assert layout.is_channels_last(y)


def test_an_even_temporal_kernel_is_refused() -> None:
    with pytest.raises(ValueError, match="kernel_size 4 must be odd"):
        TemporalConv(6, 5, 4)


def test_gradients_of_every_convolution() -> None:
    x = clip((2, 2, 3, 4, 2)).requires_grad_()
    for conv in (FrameConv2d(2, 3, 3, padding=1), TemporalConv(2, 3)):
        assert torch.autograd.gradcheck(conv.double(), (x,))


def test_a_plain_conv2d_state_dict_fits() -> None:
    plain, conv = torch.nn.Conv2d(6, 5, 3), FrameConv2d(6, 5, 3)
    conv.load_state_dict(plain.state_dict())
    assert torch.equal(conv.weight, plain.weight)
    assert conv.weight.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("make", [lambda: FrameConv2d(6, 5, 3), lambda: TemporalConv(6, 5)])
def test_an_assigned_state_dict_keeps_the_layout(make: Callable[[], torch.nn.Conv2d]) -> None:
    source = {name: value.contiguous() for name, value in make().state_dict().items()}
    with torch.device("meta"):
        conv = make()
    conv.load_state_dict(source, assign=True)
    assert torch.equal(conv.weight, source["weight"])
    assert conv.weight.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    "options", [{"kernel_size": (3, 3)}, {"stride": 2}, {"padding": (0, 0)}, {"kernel_size": (1, 3)}]
)
def test_a_temporal_kernel_that_would_lose_frames_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="do not keep the frames"):
        TemporalConv(6, 5, **options)
