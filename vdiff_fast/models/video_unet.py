"""VideoUNet: the factorised space-time U-Net of Video Diffusion Models (Ho et al. 2022).

x (B, C, T, H, W) in channels-last memory from the first convolution to the last, so that frames as images, tokens of a
frame and a position's frames are all views, and no layer copies.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vdiff_fast import layout
from vdiff_fast.models._denoiser import Denoiser
from vdiff_fast.models._inputs import check_video
from vdiff_fast.models.unet_config import PRESETS, VideoUNetConfig
from vdiff_fast.nn import (
    CrossAttention,
    FrameConv2d,
    GridEmbedding,
    GroupNormSiLU,
    LabelEmbedding,
    SpatialAttention,
    TemporalAttention,
    TemporalConv,
    TimestepEmbedding,
)
from vdiff_fast.nn.context import Context
from vdiff_fast.nn.convolution import upsample_nearest
from vdiff_fast.nn.embedding import labels_or_null


def zero_init(module: nn.Module) -> Any:
    """The module with all parameters zero: a residual branch that starts as the identity."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module


# Layers


class ResidualBlock(nn.Module):
    """y = x + R skip + Conv(SiLU(GN(Conv(SiLU(GN([x | skip]))), time))), convolutions 1x3x3, R 1x1x1.

    The pair with a skip is never concatenated: the norm reads both, and each has a shortcut of its own.

    Source: Ho et al. 2020, appendix B; scale and shift by the time embedding: Dhariwal and Nichol 2021, section 3.
    """

    def __init__(self, config: VideoUNetConfig, channels: int, skip_channels: int = 0) -> None:
        super().__init__()
        paired = channels + skip_channels
        self.per_frame, self.scale_shift = config.per_frame, config.modulation == "scale_shift"
        self.norm_1 = GroupNormSiLU(config.num_groups, paired)
        self.conv_1 = FrameConv2d(paired, channels, 3, padding=1)
        self.norm_2 = GroupNormSiLU(config.num_groups, channels)
        self.conv_2 = zero_init(FrameConv2d(channels, channels, 3, padding=1))
        self.shortcut = FrameConv2d(skip_channels, channels, 1) if skip_channels else None
        self.modulation_width = 2 * channels if self.scale_shift else channels

    def forward(self, x: Tensor, modulation: Tensor, skip: Tensor | None = None) -> Tensor:
        h = self.conv_1(self.norm_1(x, x2=skip, per_frame=self.per_frame))
        h = self.conv_2(self.norm_2(h, **self._modulate(modulation), per_frame=self.per_frame))
        return x + h if skip is None or self.shortcut is None else x + self.shortcut(skip) + h

    def _modulate(self, modulation: Tensor) -> dict[str, Tensor]:
        if not self.scale_shift:
            return {"add": modulation}
        scale, shift = modulation.chunk(2, dim=1)
        return {"scale": scale, "shift": shift}


class TemporalConvLayer(nn.Module):
    """y = x + Conv3x1x1(SiLU(GN(x))), the identity at initialisation."""

    def __init__(self, config: VideoUNetConfig, channels: int) -> None:
        super().__init__()
        self.per_frame = config.per_frame
        self.norm = GroupNormSiLU(config.num_groups, channels)
        self.conv = zero_init(TemporalConv(channels, channels, 3))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(self.norm(x, per_frame=self.per_frame))


class ConditionPyramid(nn.Module):
    """c_0 = SiLU(Conv(cond)), c_i = SiLU(Conv(c_{i-1}, stride 2)): the condition's features at every resolution.

    No bias anywhere, so that the features of a condition that knows nothing are zero.
    """

    def __init__(self, config: VideoUNetConfig) -> None:
        super().__init__()
        width = config.channels[0]
        self.convs = nn.ModuleList(
            FrameConv2d(width if i else config.cond_channels, width, 3, stride=2 if i else 1, padding=1, bias=False)
            for i in range(len(config.channels))
        )

    def forward(self, cond: Tensor) -> list[Tensor]:
        features = []
        for conv in self.convs:
            cond = F.silu(conv(cond))
            features.append(cond)
        return features


class ConditionInjection(nn.Module):
    """y = x * (1 + scale) + shift, scale and shift two convolutions of the condition's features, zero at the start.

    Two convolutions and not the halves of one: the gradients of halves would be concatenated.

    Source: Yin et al. 2023, "NUWA-XL", section 3.1 (mask temporal diffusion).
    """

    def __init__(self, features: int, channels: int) -> None:
        super().__init__()
        self.scale = zero_init(FrameConv2d(features, channels, 1, bias=False))
        self.shift = zero_init(FrameConv2d(features, channels, 1, bias=False))

    def forward(self, x: Tensor, features: Tensor) -> Tensor:
        return torch.addcmul(x + self.shift(features), x, self.scale(features))


class SpaceTimeBlock(nn.Module):
    """Residual block, then what the level has of condition injection, temporal convolution, attention over space,
    context and time.

    Source: Ho et al. 2022, "Video Diffusion Models", section 3.
    """

    def __init__(self, config: VideoUNetConfig, level: int, channels: int, skip_channels: int = 0) -> None:
        super().__init__()
        spatial, temporal, conv = (
            option[level] for option in (config.spatial_attention, config.temporal_attention, config.temporal_conv)
        )
        heads = channels // config.head_dim
        options: dict[str, Any] = {"num_groups": config.num_groups, "zero_output": True}
        self.residual = ResidualBlock(config, channels, skip_channels)
        self.injection = ConditionInjection(config.channels[0], channels) if config.injects else None
        self.temporal_conv = TemporalConvLayer(config, channels) if conv else None
        self.spatial_attn = SpatialAttention(channels, heads, **options) if spatial else None
        self.cross_attn = self.temporal_attn = None
        if spatial and config.context_dim:
            self.cross_attn = CrossAttention(channels, heads, context_dim=config.context_dim, **options)
        if temporal:
            self.temporal_attn = TemporalAttention(
                channels, heads, positions=config.positions, max_frames=config.max_frames, **options
            )

    def forward(
        self,
        x: Tensor,
        modulation: Tensor,
        context: Context | None,
        keys_values: Tensor | None = None,
        condition: Tensor | None = None,
        skip: Tensor | None = None,
    ) -> Tensor:
        """`keys_values` of the context, where they were made before; the context is then not read."""
        x = self.residual(x, modulation, skip)
        # Before the layers over time, which carry what is known to the other frames.
        x = x if self.injection is None or condition is None else self.injection(x, condition)
        x = x if self.temporal_conv is None else self.temporal_conv(x)
        x = x if self.spatial_attn is None else self.spatial_attn(x)
        x = x if self.cross_attn is None else self.cross_attn(x, context, keys_values)
        return x if self.temporal_attn is None else self.temporal_attn(x)


# Model


class Level(nn.Module):
    """The space-time blocks of one resolution, and the convolution to the next one; `VideoUNet.forward` runs them.

    With `upsample` the convolution reads its input at twice the height and width.
    """

    def __init__(
        self, blocks: Iterable[SpaceTimeBlock], resample: FrameConv2d | None, *, upsample: bool = False
    ) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.resample, self.upsample = resample, upsample

    def resampled(self, x: Tensor) -> Tensor:
        if self.resample is None:
            return x
        return self.resample(upsample_nearest(x) if self.upsample else x)


class VideoUNet(Denoiser):
    """prediction = U(x_t, t | y, context, cond): a denoiser for videos, and for images with T = 1.

    Level by level down (blocks, then a strided convolution), two blocks in the middle, level by level up (nearest, then
    a convolution; each block takes the skip of its twin on the way down), and a zero-initialised output.

    >>> model = VideoUNet.preset("tiny", num_classes=10)
    >>> v = model(x, t, y=labels)                                    # x (B, 3, T, H, W), t (B,), labels (B,)

    Args:
        config: see `VideoUNetConfig`; its default where left out.
        **changes: fields of the config to change.

    Shape:
        x: (B, C, T, H, W) float, any layout (one copy of x unless channels-last); H and W multiples of 2^(levels - 1).
        t: (B,) int64 steps, or float times.
        y: (B,) int64 class labels; None, or the label num_classes, is the null class.
        context: (B, L, context_dim) tokens; None attends to a learned null token.
        context_mask: (B, L) bool, True where a token is seen; None sees all.
        cond: (B, cond_channels, T, H, W), known frames with zeros where unknown, and their mask; None knows nothing.
        r: (B,) where the interval up to t starts, with `interval`; t itself where left out.
        modulation: `modulations(t, y, r)` made before; t, y and r are then not read.
        keys_values: `keys_values(context)` made before; context is then not read.
        returns (B, out_channels, T, H, W) in channels-last memory and x's dtype.

    Raises:
        TypeError: x is not floating point.
        ValueError: a size, number of frames or condition that the model does not take; the message says what it takes.

    Source: Ho et al. 2022, "Video Diffusion Models", section 3 and figure 1.
    """

    presets = PRESETS  # "tiny" (2 M parameters), "small" (35 M), "base" (350 M)
    config: VideoUNetConfig

    def __init__(self, config: VideoUNetConfig | None = None, **changes: Any) -> None:
        super().__init__()
        self.config = config = replace(VideoUNetConfig() if config is None else config, **changes)
        widths, finest = config.channels, config.channels[0]
        embedding = 4 * finest
        self.time_embedding = TimestepEmbedding(finest, embedding, scale=config.time_scale)
        self.interval_embedding = None
        if config.interval:
            self.interval_embedding = TimestepEmbedding(finest, embedding, scale=config.time_scale)
        self.label_embedding = LabelEmbedding(config.num_classes, embedding) if config.num_classes else None
        self.null_context = nn.Parameter(torch.zeros(config.context_dim)) if config.context_dim else None
        self.conv_in = FrameConv2d(config.in_channels, finest, 3, padding=1)
        self.grid = GridEmbedding(finest) if config.grid else None
        self.condition = ConditionPyramid(config) if config.injects else None
        self.cond_in = None
        if config.cond_channels and not config.injects:
            self.cond_in = FrameConv2d(config.cond_channels, finest, 3, padding=1, bias=False)
        self.down = cast(Iterable[Level], nn.ModuleList(self._down_level(i) for i in range(len(widths))))
        self.middle = nn.ModuleList(SpaceTimeBlock(config, -1, widths[-1]) for _ in range(2))
        self.up = cast(Iterable[Level], nn.ModuleList(self._up_level(i) for i in reversed(range(len(widths)))))
        self.norm_out = GroupNormSiLU(config.num_groups, finest)
        self.conv_out = zero_init(FrameConv2d(finest, config.out_channels, 3, padding=1))
        # One matrix product gives every residual block its share of the time embedding.
        self.modulation_widths = [m.modulation_width for m in self.modules() if isinstance(m, ResidualBlock)]
        self.modulation = nn.Linear(embedding, sum(self.modulation_widths))

    def _down_level(self, level: int) -> Level:
        config, widths = self.config, self.config.channels
        blocks = (SpaceTimeBlock(config, level, widths[level]) for _ in range(config.blocks[level]))
        coarsest = level + 1 == len(widths)
        return Level(
            blocks, None if coarsest else FrameConv2d(widths[level], widths[level + 1], 3, stride=2, padding=1)
        )

    def _up_level(self, level: int) -> Level:
        config, width = self.config, self.config.channels[level]
        blocks = (SpaceTimeBlock(config, level, width, skip_channels=width) for _ in range(config.blocks[level]))
        resample = FrameConv2d(width, config.channels[level - 1], 3, padding=1) if level else None
        return Level(blocks, resample, upsample=True)

    def _denoise(
        self, x: Tensor, rows: Tensor, context: Context | None, kept: list[Tensor | None], cond: Tensor | None
    ) -> Tensor:
        modulations, keys_values = iter(rows.split(self.modulation_widths, dim=1)), iter(kept)

        def run(block: nn.Module, h: Tensor, features: Tensor | None, skip: Tensor | None = None) -> Tensor:
            return self._run(block, h, next(modulations), context, next(keys_values), features, skip)

        h = self.conv_in(layout.canonical(x))
        if self.grid is not None:
            h = h + self.grid(*x.shape[2:], device=h.device).to(h.dtype)
        if self.cond_in is not None and cond is not None:
            h = h + self.cond_in(layout.canonical(cond))
        known = self._condition_features(cond)
        skips = []
        for level, features in zip(self.down, known):
            for block in level.blocks:
                h = run(block, h, features)
                skips.append(h)
            h = level.resampled(h)
        for block in self.middle:
            h = run(block, h, known[-1])
        for level, features in zip(self.up, reversed(known)):
            for block in level.blocks:
                h = run(block, h, features, skips.pop())
            h = level.resampled(h)
        return self.conv_out(self.norm_out(h, per_frame=self.config.per_frame))

    def blocks_in_order(self) -> list[SpaceTimeBlock]:
        parts = [*(level.blocks for level in self.down), self.middle, *(level.blocks for level in self.up)]
        return [block for part in parts for block in cast(Iterable[SpaceTimeBlock], part)]

    def modulations(self, t: Tensor, y: Tensor | None = None, r: Tensor | None = None) -> Tensor:
        """The time (and class) embedding's share of every residual block, (B, sum of modulation_widths)."""
        embedding = self.time_embedding(t)
        if self.interval_embedding is not None:
            embedding = embedding + self.interval_embedding(torch.zeros_like(t) if r is None else t - r)
        if self.label_embedding is not None:
            labels = labels_or_null(y, self.config.num_classes, t)
            embedding = embedding + self.label_embedding(labels)
        return self.modulation(F.silu(embedding))

    def _condition_features(self, cond: Tensor | None) -> list[Tensor | None]:
        """What the blocks of each level are scaled and shifted by; None where nothing is known or injected."""
        if self.condition is None or cond is None:
            return [None] * len(self.config.channels)
        return self.condition(layout.canonical(cond))

    def _check_video(self, x: Tensor) -> None:
        config = self.config
        check_video(x, config.in_channels, (config.size_multiple, config.size_multiple))
        if config.positions == "bias" and x.shape[2] > config.max_frames:
            raise ValueError(
                f"{x.shape[2]} frames > {config.max_frames} learned positions; use sample_long or a RoPE model"
            )
