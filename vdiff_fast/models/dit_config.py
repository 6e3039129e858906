"""Configuration of VideoDiT: a frozen dataclass that a trainer can save, and its presets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from vdiff_fast.models._saved_config import InjectionKind, SavedConfig, check_choices
from vdiff_fast.nn.token_attention import Axis

AttentionKind = Literal["interleaved", "divided", "joint"]
PositionKind = Literal["rope", "sincos", "none"]
AdaLNKind = Literal["block", "shared"]


@dataclass(frozen=True)
class VideoDiTConfig(SavedConfig):
    """Everything that fixes a VideoDiT's parameters and mathematics.

    Attributes:
        in_channels, out_channels: of the video x and of the prediction.
        patch: frames, rows and columns of one token.
        width, depth, heads: channels of a token, number of blocks, attention heads of width / heads channels each.
        mlp_ratio: width of the MLP's hidden layer over `width`.
        attention: "interleaved", blocks over space and blocks over time in turn (Latte, variant 1); "divided", both in
            every block (variant 3); or "joint", over all tokens of a clip.
        positions: "rope", rotary over (T, H, W); "sincos", added to the tokens; or "none". Any size.
        position_scale: multiplies the rows and columns of "sincos".
        qk_norm: RMS norm of queries and keys.
        adaln: "block", a projection of the embedding per block (adaLN-Zero), or "shared", one for all blocks and a
            table per block (PixArt's adaLN-single).
        norm_eps: of the norms before attention and before the MLP.
        time_shift: of the sinusoids' frequencies, see `vf.ops.timestep_embedding`.
        time_scale: multiplies t before the sinusoids; 1000 for flow times in [0, 1].
        interval: the model also takes r, and predicts the mean velocity from r to t rather than the velocity at t
            (MeanFlow).
        block_embeddings: every block embeds t and y by itself, as diffusers' DiTTransformer2DModel may.
        num_classes: class labels `y`; 0 for an unconditional model.
        context_dim: channels of the context tokens, for cross-attention in blocks over space; 0 for none.
        cond_channels: channels of `cond`, its mask included; 0 for none.
        condition_injection: where `cond` enters: "input", added to the tokens, or "blocks", as shift and scale of every
            block's first norm, token by token (mask temporal diffusion).
        gradient_checkpointing: recompute every block in the backward instead of keeping its activations.
    """

    in_channels: int = 3
    out_channels: int = 3
    patch: tuple[int, int, int] = (1, 2, 2)
    width: int = 384
    depth: int = 12
    heads: int = 6
    mlp_ratio: float = 4.0
    attention: AttentionKind = "interleaved"
    positions: PositionKind = "sincos"
    position_scale: float = 1.0
    qk_norm: bool = False
    adaln: AdaLNKind = "block"
    norm_eps: tuple[float, float] = (1e-6, 1e-6)
    time_shift: float = 0.0
    time_scale: float = 1.0
    interval: bool = False
    block_embeddings: bool = False
    num_classes: int = 0
    context_dim: int = 0
    cond_channels: int = 0
    condition_injection: InjectionKind = "input"
    gradient_checkpointing: bool = False

    def __post_init__(self) -> None:
        check_choices(self, attention=AttentionKind, positions=PositionKind, adaln=AdaLNKind)
        if len(self.patch) != 3 or min(self.patch) < 1:
            raise ValueError(f"patch {self.patch} must be three sizes from 1: frames, rows, columns")
        if self.width % self.heads or self.width // self.heads % 8:
            raise ValueError(
                f"width {self.width} over {self.heads} heads must give head channels that are a multiple of 8; "
                f"numbers of heads that do: {self._possible_heads()}"
            )
        if self.positions == "sincos" and self.width % 4:
            raise ValueError(f"width {self.width} must be a multiple of 4 for sincos positions")
        if self.attention == "interleaved" and self.depth % 2:
            raise ValueError(f"depth {self.depth} must be even for interleaved attention; use {self.depth + 1}")
        if self.adaln == "shared" and self.block_embeddings:
            raise ValueError("adaln 'shared' has one projection for all blocks and cannot have block_embeddings")

    def _possible_heads(self) -> str:
        return ", ".join(str(h) for h in range(1, self.width + 1) if self.width % (8 * h) == 0) or "none"

    def axes(self, index: int) -> tuple[Axis, ...]:
        """What block `index` attends over, in order."""
        if self.attention == "divided":
            return ("space", "time")
        if self.attention == "joint":
            return ("joint",)
        return ("time",) if index % 2 else ("space",)

    @property
    def modulations(self) -> int:
        """Shifts, scales and gates of one block: three for each attention and for the MLP."""
        return 3 * (len(self.axes(0)) + 1)


PRESETS = {
    "tiny": VideoDiTConfig(width=192, depth=6, heads=6),
    "s": VideoDiTConfig(width=384, depth=12, heads=6),
    "b": VideoDiTConfig(width=768, depth=12, heads=12),
    "l": VideoDiTConfig(width=1024, depth=24, heads=16),
    "xl": VideoDiTConfig(width=1152, depth=28, heads=16),
}
