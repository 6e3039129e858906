"""Convolutions of a video as 2-D convolutions over views of its channels-last memory."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vdiff_fast import layout


def upsample_nearest(x: Tensor) -> Tensor:
    """x (B, C, T, H, W) -> (B, C, T, 2H, 2W) channels-last: every pixel of every frame four times, one write."""
    frames = F.interpolate(layout.as_frames(x), scale_factor=2.0, mode="nearest")
    return layout.as_video(frames, x.shape[0], x.shape[2])


class _ChannelsLastConv2d(nn.Conv2d):
    """A Conv2d whose weight lies in channels-last memory, as the frames do, so that neither is reordered."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._lay_out_weight()

    def _lay_out_weight(self) -> None:
        # Not by `to`, which swaps tensors of a subclass: fake ones refuse that. The Parameter stays the one it was.
        self.weight.data = self.weight.data.contiguous(memory_format=torch.channels_last)

    def _load_from_state_dict(
        self, state_dict: Mapping[str, Any], prefix: str, local_metadata: dict[str, Any], *args: Any
    ) -> None:
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *args)
        if local_metadata.get("assign_to_params_buffers"):
            # The parameter is now the file's own tensor, in the file's layout.
            self._lay_out_weight()


class FrameConv2d(_ChannelsLastConv2d):
    """y[:, :, t] = Conv2d(x[:, :, t]): one 2-D convolution over every frame, 1 x k x k in video terms.

    Constructor and state_dict of `torch.nn.Conv2d`.

    Shape: x (B, C, T, H, W) channels-last -> (B, O, T, H', W') channels-last, no copy; any other layout is copied once.

    Source: Ho et al. 2022, "Video Diffusion Models", section 3.
    """

    def forward(self, x: Tensor) -> Tensor:
        return layout.as_video(super().forward(layout.as_frames(x)), x.shape[0], x.shape[2])


class TemporalConv(_ChannelsLastConv2d):
    """y[:, :, t] = sum_k W_k x[:, :, t + k - K//2] + b: a K x 1 x 1 convolution over time, zeros beyond the ends.

    It is a 2-D convolution (K, 1) over the image (B, C, T, H*W), which is a view: `conv3d` would reorder.

    Args:
        in_channels, out_channels, groups, bias: as in `torch.nn.Conv2d`.
        kernel_size: K, an odd number of frames, or (K, 1), as the module itself has it.
        stride, padding: 1 and K//2, the only values that keep the frames; an adapter passes them on from the layer.

    Shape: x (B, C, T, H, W) channels-last -> (B, O, T, H, W) channels-last, no copy.

    Raises:
        ValueError: another kernel, stride or padding.

    Source: Singer et al. 2022, "Make-A-Video", section 3.2.1 (spatial, then temporal convolution).
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int] = 3,
        stride: int | tuple[int, int] = 1,
        padding: tuple[int, int] | None = None,
        *,
        groups: int = 1,
        bias: bool = True,
    ) -> None:
        frames, width = (kernel_size, 1) if isinstance(kernel_size, int) else kernel_size
        if frames % 2 == 0:
            raise ValueError(f"TemporalConv: kernel_size {kernel_size} must be odd, so that the frames stay aligned")
        kept = (frames // 2, 0)
        if width != 1 or stride not in (1, (1, 1)) or padding not in (None, kept):
            raise ValueError(
                f"TemporalConv: kernel {kernel_size}, stride {stride} and padding {padding} do not keep the frames; "
                f"use kernel_size ({frames}, 1), stride 1, padding {kept}"
            )
        super().__init__(in_channels, out_channels, (frames, 1), padding=kept, groups=groups, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        image = x.movedim(1, -1).flatten(2, 3).movedim(-1, 1)
        return super().forward(image).unflatten(3, x.shape[3:])
