"""Convolutions of a video as 2-D convolutions over views of its channels-last memory."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vdiff_fast import layout


class FrameConv2d(nn.Conv2d):
    """y[:, :, t] = Conv2d(x[:, :, t]): one 2-D convolution over every frame, 1 x k x k in video terms.

    Constructor and state_dict of `torch.nn.Conv2d`; the weight lies in channels-last memory, as the frames do, so that
    neither is reordered.

    Shape: x (B, C, T, H, W) channels-last -> (B, O, T, H', W') channels-last, no copy; any other layout is copied once.

    Source: Ho et al. 2022, "Video Diffusion Models", section 3.
    """

    def __init__(self, *args: object, **kwargs: object) -> None:
        super().__init__(*args, **kwargs)  # type: ignore[arg-type]
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, x: Tensor) -> Tensor:
        return layout.as_video(super().forward(layout.as_frames(x)), x.shape[0])


class UpsampleConv2d(FrameConv2d):
    """y = Conv2d(nearest(x, 2)) frame by frame: twice the height and width, then a convolution.

    Shape: x (B, C, T, H, W) -> (B, O, T, 2H, 2W) with the padding that keeps the size.
    """

    def forward(self, x: Tensor) -> Tensor:
        frames = F.interpolate(layout.as_frames(x), scale_factor=2.0, mode="nearest")
        return layout.as_video(nn.Conv2d.forward(self, frames), x.shape[0])


class TemporalConv(nn.Conv2d):
    """y[:, :, t] = sum_k W_k x[:, :, t + k - K//2] + b: a K x 1 x 1 convolution over time, zeros beyond the ends.

    It is a 2-D convolution (K, 1) over the image (B, C, T, H*W), which is a view: `conv3d` would reorder.

    Args:
        in_channels, out_channels, bias: as in `torch.nn.Conv2d`.
        kernel_size: odd number of frames.

    Shape: x (B, C, T, H, W) channels-last -> (B, O, T, H, W) channels-last, no copy.

    Source: Singer et al. 2022, "Make-A-Video", section 3.2.1 (spatial, then temporal convolution).
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int = 3, *, bias: bool = True) -> None:
        if kernel_size % 2 == 0:
            raise ValueError(f"TemporalConv: kernel_size {kernel_size} must be odd, so that the frames stay aligned")
        super().__init__(in_channels, out_channels, (kernel_size, 1), padding=(kernel_size // 2, 0), bias=bias)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, x: Tensor) -> Tensor:
        image = x.movedim(1, -1).flatten(2, 3).movedim(-1, 1)
        return super().forward(image).unflatten(3, x.shape[3:])
