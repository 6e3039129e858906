"""Configuration of VideoUNet: a frozen dataclass that a trainer can save, and its presets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from vdiff_fast.models._saved_config import InjectionKind, SavedConfig, check_choices
from vdiff_fast.nn.attention import PositionKind

ModulationKind = Literal["add", "scale_shift"]


def _divisors_below(number: int, limit: int) -> str:
    divisors = [d for d in range(min(limit - 1, number), 0, -1) if number % d == 0]
    return ", ".join(map(str, divisors[:3])) or "none"


@dataclass(frozen=True)
class VideoUNetConfig(SavedConfig):
    """Everything that fixes a VideoUNet's parameters and mathematics. Tuples have one entry per level, finest first.

    Attributes:
        in_channels, out_channels: of the video x and of the prediction.
        channels: width of each level; each level after the first halves height and width.
        blocks: space-time blocks of each level, on the way down and again on the way up.
        spatial_attention, temporal_attention: whether the blocks of a level attend over positions and over frames.
        temporal_conv: whether the blocks of a level convolve over three frames; the identity at initialisation.
        head_dim: channels per attention head; divides the width of every level that attends.
        num_groups: of GroupNorm; divides every width, and the width of every pair with a skip.
        per_frame: GroupNorm statistics over each frame instead of the clip.
        modulation: how the time embedding enters a block: "add" to the features, or "scale_shift" of the norm.
        positions: of the frames in temporal attention: "bias" (learned, relative, per head), "rope", or "none".
        max_frames: longest clip that "bias" serves; "rope" and "none" know no limit.
        grid: add an embedding of the pixel's place in the clip to the first features; for scenes that are aligned.
        time_scale: multiplies t before the sinusoids; 1000 for flow times in [0, 1].
        interval: the model also takes r, and predicts the mean velocity from r to t rather than the velocity at t
            (MeanFlow).
        num_classes: class labels `y`; 0 for an unconditional model.
        context_dim: channels of the context tokens, for cross-attention on levels with spatial attention; 0 for none.
        cond_channels: channels of `cond`, its mask included; 0 for none.
        condition_injection: where `cond` enters: "input", added to the first features, or "blocks", as scale and shift
            of every space-time block at its resolution (mask temporal diffusion).
        gradient_checkpointing: recompute every block in the backward instead of keeping its activations.
    """

    in_channels: int = 3
    out_channels: int = 3
    channels: tuple[int, ...] = (128, 256, 512)
    blocks: tuple[int, ...] = (2, 2, 2)
    spatial_attention: tuple[bool, ...] = (False, True, True)
    temporal_attention: tuple[bool, ...] = (True, True, True)
    temporal_conv: tuple[bool, ...] = (False, False, False)
    head_dim: int = 64
    num_groups: int = 32
    per_frame: bool = False
    modulation: ModulationKind = "add"
    positions: PositionKind = "bias"
    max_frames: int = 32
    grid: bool = False
    time_scale: float = 1.0
    interval: bool = False
    num_classes: int = 0
    context_dim: int = 0
    cond_channels: int = 0
    condition_injection: InjectionKind = "input"
    gradient_checkpointing: bool = False

    def __post_init__(self) -> None:
        levels = len(self.channels)
        for name in ("blocks", "spatial_attention", "temporal_attention", "temporal_conv"):
            if len(getattr(self, name)) != levels:
                raise ValueError(f"{name} {getattr(self, name)} needs one entry per level of channels {self.channels}")
        check_choices(self, modulation=ModulationKind, positions=PositionKind)
        for level, width in enumerate(self.channels):
            if width % self.num_groups:
                raise ValueError(
                    f"level {level}: {width} channels are not divisible by {self.num_groups} groups; "
                    f"largest divisors below: {_divisors_below(width, self.num_groups)}"
                )
            if self.attends(level) and width % self.head_dim:
                raise ValueError(
                    f"level {level}: {width} channels are not divisible by head_dim {self.head_dim}; "
                    f"largest divisors below: {_divisors_below(width, self.head_dim)}"
                )

    def attends(self, level: int) -> bool:
        return self.spatial_attention[level] or self.temporal_attention[level]

    @property
    def size_multiple(self) -> int:
        """Height and width must be multiples of this: every level after the first halves them."""
        return int(2 ** (len(self.channels) - 1))


PRESETS = {
    "tiny": VideoUNetConfig(
        channels=(32, 64, 96),
        blocks=(1, 2, 1),
        spatial_attention=(False, True, True),
        temporal_attention=(False, True, True),
        head_dim=32,
        num_groups=8,
        grid=True,
    ),
    "small": VideoUNetConfig(
        channels=(96, 192, 384),
        head_dim=32,
    ),
    "base": VideoUNetConfig(
        channels=(256, 512, 768, 1024),
        blocks=(2, 2, 2, 2),
        spatial_attention=(False, True, True, True),
        temporal_attention=(True, True, True, True),
        temporal_conv=(False, False, False, False),
    ),
}
