"""Factorised space-time attention as modules: norm, projection, attention, output, residual.

A video is (B, C, T, H, W) in channels-last memory, so its tokens (B, T, S, C) with S = H*W are a view and no layout
copy is made, forward or backward.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from vdiff_fast import _derivatives, layout, ops
from vdiff_fast.nn.context import Context, as_context, attend_to_context
from vdiff_fast.nn.qkv_linear import project_qkv
from vdiff_fast.nn.rotary import RotaryTables, Tables
from vdiff_fast.ops._common.normalise import layer_norm

NormKind = Literal["group", "layer", "none"]
PositionKind = Literal["bias", "rope", "none"]


class RelativePositionBias(nn.Module):
    """bias[h, t, u] = weight[h, u - t + max_frames - 1]: one learned number per head and distance in frames.

    Args:
        heads: attention heads.
        max_frames: longest clip the table serves.
    """

    def __init__(self, heads: int, max_frames: int = 32) -> None:
        super().__init__()
        self.heads, self.max_frames = heads, max_frames
        self.weight = nn.Parameter(torch.empty(heads, 2 * max_frames - 1))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.normal_(self.weight, std=0.02)

    def forward(self, frames: int) -> Tensor:
        """(heads, T, T).

        Raises:
            ValueError: more frames than the table has.
        """
        if frames > self.max_frames:
            raise ValueError(f"{frames} frames > {self.max_frames} learned positions; use sample_long or a RoPE model")
        # An index, and not `unfold`, whose window length torch.compile would fix to one number of frames.
        frame = torch.arange(frames, device=self.weight.device)
        return self.weight[:, frame[None, :] - frame[:, None] + self.max_frames - 1]

    def extra_repr(self) -> str:
        return f"heads={self.heads}, max_frames={self.max_frames}"


class _Attention(nn.Module):
    """What attention over space and over time share: y = x + proj(attention(qkv(norm(x))))."""

    def __init__(
        self,
        channels: int,
        heads: int,
        *,
        norm: NormKind = "group",
        num_groups: int = 32,
        eps: float = 1e-5,
        qkv_bias: bool = True,
        qk_norm: bool = False,
        zero_output: bool = False,
    ) -> None:
        super().__init__()
        if channels % heads:
            raise ValueError(f"{type(self).__name__}: {channels} channels are not divisible by {heads} heads")
        if norm not in ("group", "layer", "none"):
            raise ValueError(f"{type(self).__name__}: norm must be group, layer or none, got {norm!r}")
        self.channels, self.heads, self.head_dim = channels, heads, channels // heads
        self.norm, self.num_groups, self.eps, self.zero_output = norm, num_groups, eps, zero_output
        self.norm_weight = nn.Parameter(torch.ones(channels)) if norm != "none" else None
        self.norm_bias = nn.Parameter(torch.zeros(channels)) if norm != "none" else None
        self.qkv = nn.Linear(channels, 3 * channels, bias=qkv_bias)
        self.proj = nn.Linear(channels, channels)
        self.q_norm = nn.Parameter(torch.ones(self.head_dim)) if qk_norm else None
        self.k_norm = nn.Parameter(torch.ones(self.head_dim)) if qk_norm else None
        if zero_output:
            nn.init.zeros_(self.proj.weight)
            nn.init.zeros_(self.proj.bias)

    def _norm_weights(self) -> tuple[Tensor, Tensor] | None:
        return None if self.q_norm is None or self.k_norm is None else (self.q_norm, self.k_norm)

    def _prepare(self, q: Tensor, k: Tensor, rope: Tables | None) -> dict[str, Any]:
        """What is left for the attention to do: without gradients q and k, which are ours, are overwritten here."""
        norm = self._norm_weights()
        if torch.is_grad_enabled() or torch.compiler.is_compiling() or _derivatives.transformed():
            return {"qk_norm": norm, "rope": rope}
        if norm is not None or rope is not None:
            ops.qk_norm_rope(q, k, qk_norm=norm, rope=rope, inplace=True, eps=1e-6)
        return {}

    def _normed_tokens(self, x: Tensor) -> Tensor:
        if self.norm == "group":
            x = ops.group_norm_silu(
                x, self.num_groups, self.norm_weight, self.norm_bias, self.eps, per_frame=True, activation="none"
            )
        tokens = layout.as_tokens(x)
        if self.norm == "layer":
            tokens = layer_norm(tokens, self.norm_weight, self.norm_bias, self.eps)
        return tokens

    def _residual(self, x: Tensor, tokens: Tensor) -> Tensor:
        return x + layout.from_tokens(tokens, x.shape[3], x.shape[4])

    def _check(self, x: Tensor) -> None:
        if x.dim() != 5 or x.shape[1] != self.channels:
            raise ValueError(
                f"{type(self).__name__}: x must be (B, {self.channels}, T, H, W), got shape {tuple(x.shape)}"
            )

    def extra_repr(self) -> str:
        return f"channels={self.channels}, heads={self.heads}, norm={self.norm}, zero_output={self.zero_output}"


class TemporalAttention(_Attention):
    """y = x + proj(temporal_attention(qkv(norm(x)))): every position attends over its own frames.

    A new module is the identity (`zero_output`), so that it can be added to a trained image model. Other than
    `TokenAttention` it takes a video, norms it and adds the residual.

    Args:
        channels, heads: width, and heads of channels / heads each (a multiple of 8).
        positions: "bias" (learned, up to max_frames), "rope" (any number of frames up to 1024) or "none".
        max_frames: of the learned bias.
        causal: a frame sees itself and the frames before it.
        norm: "group" (statistics per frame), "layer", or "none".
        num_groups, eps, qkv_bias, qk_norm: of the norm, of the projection, and RMS norm of queries and keys.
        zero_output: start with a zero output projection.
    """

    def __init__(
        self,
        channels: int,
        heads: int,
        *,
        positions: PositionKind = "bias",
        max_frames: int = 32,
        causal: bool = False,
        zero_output: bool = True,
        **options: Any,
    ) -> None:
        super().__init__(channels, heads, zero_output=zero_output, **options)
        if positions not in ("bias", "rope", "none"):
            raise ValueError(f"TemporalAttention: positions must be bias, rope or none, got {positions!r}")
        self.causal = causal
        self.position_bias = RelativePositionBias(heads, max_frames) if positions == "bias" else None
        self.rotary = RotaryTables(self.head_dim) if positions == "rope" else None

    def attend(self, tokens: Tensor, *, mask: Tensor | None = None) -> Tensor:
        """Normed tokens (B, T, S, C) -> (B, T, S, C), without the residual; mask (B, T) bool, True: seen."""
        frames = tokens.shape[1]
        out = ops.temporal_attention_qkv(
            self.qkv(tokens).unflatten(-1, (3, self.heads, self.head_dim)),
            bias=None if self.position_bias is None else self.position_bias(frames),
            causal=self.causal,
            mask=mask,
            qk_norm=self._norm_weights(),
            rope=None if self.rotary is None else self.rotary(frames, device=tokens.device),
            # Written out here and elsewhere: a default is a symbol under torch.compile with dynamic shapes, and dynamo
            # cannot take one into a second checkpointed block.
            eps=1e-6,
        )
        return self.proj(out.flatten(-2))

    def forward(self, x: Tensor, *, mask: Tensor | None = None) -> Tensor:
        """x (B, C, T, H, W) -> the same shape and layout."""
        self._check(x)
        return self._residual(x, self.attend(self._normed_tokens(x), mask=mask))


class SpatialAttention(_Attention):
    """y = x + proj(spatial_attention(qkv(norm(x)))): every frame attends over its own positions.

    Args:
        channels, heads: width, and heads of channels / heads each (a multiple of 8).
        positions: "rope" (rows and columns) or "none" (convolutions around it carry positions).
        joint: attend over all T * H * W tokens of a clip instead; "rope" then has three axes.
        norm, num_groups, eps, qkv_bias, qk_norm, zero_output: as in `TemporalAttention`.
    """

    def __init__(
        self,
        channels: int,
        heads: int,
        *,
        positions: Literal["rope", "none"] = "none",
        joint: bool = False,
        zero_output: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(channels, heads, zero_output=zero_output, **options)
        if positions not in ("rope", "none"):
            raise ValueError(f"SpatialAttention: positions must be rope or none, got {positions!r}")
        self.joint = joint
        self.rotary = RotaryTables(self.head_dim, axes=3 if joint else 2) if positions == "rope" else None

    def attend(self, tokens: Tensor, size: tuple[int, int]) -> Tensor:
        """Normed tokens (B, T, S, C) of frames of `size` (H, W) -> (B, T, S, C), without the residual."""
        frames = tokens.shape[1]
        rope = None
        if self.rotary is not None:
            rope = self.rotary(*((frames, *size) if self.joint else size), device=tokens.device)
        grouped = tokens.flatten(1, 2).unsqueeze(1) if self.joint else tokens
        q, k, v = project_qkv(grouped, self.qkv, self.heads)
        out = ops.spatial_attention(q, k, v, **self._prepare(q, k, rope), eps=1e-6)
        return self.proj(out.flatten(-2).reshape(tokens.shape))

    def forward(self, x: Tensor) -> Tensor:
        """x (B, C, T, H, W) -> the same shape and layout."""
        self._check(x)
        return self._residual(x, self.attend(self._normed_tokens(x), (x.shape[3], x.shape[4])))


class SpaceTimeAttention(nn.Module):
    """Attention over space and time: divided, interleaved or joint.

    "divided": over space, then over time (Bertasius et al. 2021; Ho et al. 2022). "interleaved": over space in blocks
    of even `index`, over time in odd ones (Ma et al. 2024, Latte variant 1). "joint": over all T * H * W tokens.

    Args:
        channels, heads: as in `TemporalAttention`.
        mode: how space and time are combined.
        index: number of the block, for "interleaved".
        positions, max_frames, causal: of the temporal part; with "rope" the spatial part has it too.
        options: norm, num_groups, eps, qkv_bias, qk_norm of both parts.
    """

    def __init__(
        self,
        channels: int,
        heads: int,
        *,
        mode: Literal["divided", "interleaved", "joint"] = "divided",
        index: int = 0,
        positions: PositionKind = "bias",
        max_frames: int = 32,
        causal: bool = False,
        **options: Any,
    ) -> None:
        super().__init__()
        if mode not in ("divided", "interleaved", "joint"):
            raise ValueError(f"SpaceTimeAttention: mode must be divided, interleaved or joint, got {mode!r}")
        if mode == "joint" and causal:
            raise ValueError("SpaceTimeAttention: causal attention needs a temporal part; mode is joint")
        spatial_positions: Literal["rope", "none"] = "rope" if positions == "rope" else "none"
        self.mode = mode
        self.space: SpatialAttention | None = None
        self.time: TemporalAttention | None = None
        if mode != "interleaved" or index % 2 == 0:
            self.space = SpatialAttention(
                channels, heads, positions=spatial_positions, joint=mode == "joint", **options
            )
        if mode == "divided" or (mode == "interleaved" and index % 2):
            self.time = TemporalAttention(
                channels, heads, positions=positions, max_frames=max_frames, causal=causal, **options
            )

    def forward(self, x: Tensor, *, mask: Tensor | None = None) -> Tensor:
        """x (B, C, T, H, W) -> the same shape and layout; mask (B, T) bool hides frames from the temporal part."""
        if self.space is not None:
            x = self.space(x)
        return x if self.time is None else self.time(x, mask=mask)

    def extra_repr(self) -> str:
        return f"mode={self.mode}"


class CrossAttention(_Attention):
    """y = x + proj(attention(q(norm(x)), kv(context))): every position of every frame attends over the context tokens.

    Args:
        channels, heads: width, and heads of channels / heads each (a multiple of 8).
        context_dim: width of the context.
        norm, num_groups, eps, qkv_bias, qk_norm, zero_output: as in `TemporalAttention`.
    """

    def __init__(self, channels: int, heads: int, *, context_dim: int, qkv_bias: bool = True, **options: Any) -> None:
        super().__init__(channels, heads, qkv_bias=qkv_bias, **options)
        self.context_dim = context_dim
        del self.qkv
        self.q = nn.Linear(channels, channels, bias=qkv_bias)
        self.kv = nn.Linear(context_dim, 2 * channels, bias=qkv_bias)

    def attend(self, tokens: Tensor, keys_values: Tensor, mask: Tensor | None = None) -> Tensor:
        """Normed tokens (B, T, S, C) and kv(context) (B, L, 2 C) -> (B, T, S, C), without the residual.

        mask: (B, L) bool, True where a token of the context is seen.
        """
        q = self.q(tokens).unflatten(-1, (self.heads, self.head_dim))
        return self.proj(attend_to_context(q, keys_values, qk_norm=self._norm_weights(), mask=mask).flatten(-2))

    def forward(self, x: Tensor, context: Tensor | Context | None, keys_values: Tensor | None = None) -> Tensor:
        """x (B, C, T, H, W), context (B, L, context_dim) or a `Context` with a mask -> the shape and layout of x.

        keys_values: `kv(context)` made before, (B, L, 2 C); the context is then not read.
        """
        self._check(x)
        tokens, mask = as_context(context)
        if keys_values is None:
            keys_values = self.kv(self._checked(tokens, x.shape[0]))
        return self._residual(x, self.attend(self._normed_tokens(x), keys_values, mask))

    def _checked(self, context: Tensor | None, batch: int) -> Tensor:
        if context is None or context.dim() != 3 or (context.shape[0], context.shape[2]) != (batch, self.context_dim):
            got = None if context is None else tuple(context.shape)
            raise ValueError(f"CrossAttention: context must be ({batch}, L, {self.context_dim}), got {got}")
        return context
