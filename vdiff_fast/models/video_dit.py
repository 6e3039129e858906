"""VideoDiT: a diffusion transformer for video with adaLN-Zero (Peebles and Xie 2023; Ma et al. 2024, "Latte").

Tokens are (B, T, S, D), S patches of every frame, from the embedding to the output: attention over space, over time or
over both reads them as they lie, and no layer copies.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vdiff_fast import ops
from vdiff_fast.models._denoiser import Denoiser
from vdiff_fast.models._inputs import check_video
from vdiff_fast.models.dit_config import PRESETS, VideoDiTConfig
from vdiff_fast.nn.context import Context
from vdiff_fast.nn.embedding import LabelEmbedding, TimestepEmbedding, labels_or_null
from vdiff_fast.nn.modulation import GELUMLP, Modulated, gated_modulated, modulated, modulated_linear
from vdiff_fast.nn.patch_embedding import PatchEmbed, sincos_grid, sincos_positions, unpatchify
from vdiff_fast.nn.rotary import RotaryTables
from vdiff_fast.nn.token_attention import Axis, Tables, TokenAttention, TokenCrossAttention

FINAL_EPS = 1e-6
TIME_SINUSOIDS = 256


class Stream(NamedTuple):
    """The residual stream x + gate * branch, not yet added: the next norm adds it in its own pass."""

    x: Tensor
    branch: Tensor | None = None
    gate: Tensor | None = None

    def closed(self) -> Tensor:
        if self.branch is None or self.gate is None:
            return self.x
        return ops.gated_residual(self.x, self.branch, self.gate)

    def modulated(self, shift: Tensor, scale: Tensor, eps: float) -> Modulated:
        if self.branch is None or self.gate is None:
            return modulated(self.x, shift, scale, eps)
        return gated_modulated(self.x, self.branch, self.gate, shift, scale, eps)


# Layers


class Conditioning(nn.Module):
    """c = MLP(sinusoids(t)) + MLP'(sinusoids(t - r)) + E[y], (B, D); the second of a model of intervals alone.

    Source: Peebles and Xie 2023, section 3.2; Geng et al. 2025, "Mean Flows", table 1c (t and t - r).
    """

    def __init__(self, config: VideoDiTConfig) -> None:
        super().__init__()
        sinusoids: dict[str, Any] = {"shift": config.time_shift, "flip_sin_to_cos": True, "scale": config.time_scale}
        self.time = TimestepEmbedding(TIME_SINUSOIDS, config.width, **sinusoids)
        self.interval = TimestepEmbedding(TIME_SINUSOIDS, config.width, **sinusoids) if config.interval else None
        self.null_class = config.num_classes
        self.label = LabelEmbedding(config.num_classes, config.width) if config.num_classes else None

    def forward(self, t: Tensor, y: Tensor | None, r: Tensor | None = None) -> Tensor:
        embedding = self.time(t)
        if self.interval is not None:
            embedding = embedding + self.interval(torch.zeros_like(t) if r is None else t - r)
        return embedding if self.label is None else embedding + self.label(labels_or_null(y, self.null_class, t))

    def weights(self) -> list[Tensor]:
        times = [self.time] if self.interval is None else [self.time, self.interval]
        weights = [linear.weight for time in times for linear in (time.linear_1, time.linear_2)]
        return weights if self.label is None else [*weights, self.label.weight]


class ContextProjection(nn.Module):
    """W2 GELU(W1 context + b1) + b2: context tokens in the width of the model.

    Source: Chen et al. 2024, "PixArt-alpha", section 2.3.
    """

    def __init__(self, context_dim: int, width: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(context_dim, width)
        self.linear_2 = nn.Linear(width, width)

    def forward(self, context: Tensor) -> Tensor:
        return self.linear_2(F.gelu(self.linear_1(context), approximate="tanh"))


class ConditionFeatures(nn.Module):
    """c = SiLU(W patch) of the condition, (B, T, S, D): zero, without a bias, where a condition knows nothing."""

    def __init__(self, config: VideoDiTConfig) -> None:
        super().__init__()
        self.embed = PatchEmbed(config.cond_channels, config.width, config.patch, bias=False)

    def forward(self, cond: Tensor) -> Tensor:
        return F.silu(self.embed(cond))


class ConditionInjection(nn.Module):
    """(shift + A c, scale + B c): the modulation of a norm, told token by token what is known; A and B start at zero.

    Two projections and not the halves of one: the gradients of halves would be concatenated.

    Source: Yin et al. 2023, "NUWA-XL", section 3.1 (mask temporal diffusion).
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.shift = nn.Linear(width, width, bias=False)
        self.scale = nn.Linear(width, width, bias=False)

    def forward(self, features: Tensor, shift: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
        return self.shift(features) + shift[:, None, None], self.scale(features) + scale[:, None, None]


class DiTBlock(nn.Module):
    """x = x + gate * branch(LN(x) * (1 + scale) + shift) for each attention, then for the MLP.

    The last branch is left to the next block's norm (`Stream`). Cross-attention over the context follows the attention
    over space, without norm or gate. The first norm is modulated by the condition, too.

    Source: Peebles and Xie 2023, figure 3 (adaLN-Zero); Chen et al. 2024, figure 4 (cross-attention).
    """

    def __init__(self, config: VideoDiTConfig, index: int) -> None:
        super().__init__()
        self.norm_eps, axes = config.norm_eps, config.axes(index)
        self.injection = ConditionInjection(config.width) if config.injects else None
        self.attns = nn.ModuleList(
            TokenAttention(config.width, config.heads, axis, qk_norm=config.qk_norm) for axis in axes
        )
        self.cross_attn = None
        if config.context_dim and axes != ("time",):
            self.cross_attn = TokenCrossAttention(config.width, config.heads, qk_norm=config.qk_norm)
        self.mlp = GELUMLP(config.width, int(config.width * config.mlp_ratio))

    def forward(
        self,
        stream: Stream,
        modulation: Tensor,
        ropes: dict[Axis, Tables],
        context: Context | None,
        keys_values: Tensor | None = None,
        condition: Tensor | None = None,
        close: bool = False,
    ) -> Stream:
        """modulation (B, 3 * branches, D): shift, scale and gate of each; `close` adds the last branch at once.

        `keys_values` of the context, where they were made before; the context is then not read.
        """
        shift, scale, *others = modulation.unbind(1)
        if self.injection is not None and condition is not None:
            shift, scale = self.injection(condition, shift, scale)
        vectors = iter((shift, scale, *others))
        for attn in cast(Iterable[TokenAttention], self.attns):
            source = stream.modulated(next(vectors), next(vectors), self.norm_eps[0])
            stream = Stream(source.x, attn(source, ropes.get(attn.axis)), next(vectors))
            if self.cross_attn is not None and attn.axis != "time":
                x = stream.closed()
                stream = Stream(x + self.cross_attn(x, context, keys_values))
        source = stream.modulated(next(vectors), next(vectors), self.norm_eps[1])
        stream = Stream(source.x, self.mlp(source), next(vectors))
        return Stream(stream.closed()) if close else stream


class FinalLayer(nn.Module):
    """patches = W (LN(x) * (1 + scale) + shift) + b, zero at initialisation.

    Source: Peebles and Xie 2023, section 3.2 ("Transformer decoder").
    """

    def __init__(self, config: VideoDiTConfig) -> None:
        super().__init__()
        pt, ph, pw = config.patch
        self.linear = nn.Linear(config.width, pt * ph * pw * config.out_channels)

    def forward(self, stream: Stream, shift: Tensor, scale: Tensor) -> Tensor:
        return modulated_linear(stream.modulated(shift, scale, FINAL_EPS), self.linear)


# Model


class VideoDiT(Denoiser):
    """prediction = DiT(x_t, t | y, context, cond): a transformer denoiser for videos, and for images with T = 1.

    Patches of the video are tokens; blocks attend over space and time and are modulated by the time and class embedding
    (adaLN-Zero, so that a new model is the identity in every block and predicts zero).

    >>> model = VideoDiT.preset("s", patch=(1, 2, 2), num_classes=10)
    >>> v = model(x, t, y=labels)                                    # x (B, 3, T, H, W), t (B,), labels (B,)

    Args:
        config: see `VideoDiTConfig`; its default where left out.
        **changes: fields of the config to change.

    Shape:
        x: (B, C, T, H, W) float, any layout; T, H and W multiples of the patch. T = 1 always fits: an image is repeated
            over the frames of a patch, and its prediction is their mean.
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
        ValueError: a size or condition that the model does not take; the message says what it takes.

    Source: Peebles and Xie 2023, "Scalable Diffusion Models with Transformers"; Ma et al. 2024, "Latte", section 3.1.
    """

    presets = PRESETS  # "tiny" (4 M parameters), and DiT's "s", "b", "l" and "xl"
    config: VideoDiTConfig

    def __init__(self, config: VideoDiTConfig | None = None, **changes: Any) -> None:
        super().__init__()
        self.config = config = replace(VideoDiTConfig() if config is None else config, **changes)
        width, count = config.width, config.modulations
        self.patch_embed = PatchEmbed(config.in_channels, width, config.patch)
        self.cond_embed = None
        self.condition = ConditionFeatures(config) if config.injects else None
        if config.cond_channels and not config.injects:
            self.cond_embed = PatchEmbed(config.cond_channels, width, config.patch, bias=False)
        self.conditioning = nn.ModuleList(
            Conditioning(config) for _ in range(config.depth if config.block_embeddings else 1)
        )
        self.null_context = nn.Parameter(torch.zeros(config.context_dim)) if config.context_dim else None
        self.context_projection = ContextProjection(config.context_dim, width) if config.context_dim else None
        self.rotary = nn.ModuleDict()
        if config.positions == "rope":
            axes = {"joint": 3} if config.attention == "joint" else {"space": 2, "time": 1}
            self.rotary.update({axis: RotaryTables(width // config.heads, axes=n) for axis, n in axes.items()})
        self.blocks = nn.ModuleList(DiTBlock(config, index) for index in range(config.depth))
        self.final_layer = FinalLayer(config)
        # One matrix product modulates every block: all their vectors, then shift and scale of the final layer.
        self.tables: nn.Parameter | None = None
        self.modulation: nn.Module
        if config.adaln == "shared":
            self.modulation = nn.Linear(width, count * width)
            self.tables = nn.Parameter(torch.zeros(config.depth * count + 2, width))
        elif config.block_embeddings:
            self.modulation = nn.ModuleList(nn.Linear(width, n * width) for n in [count] * config.depth + [2])
        else:
            self.modulation = nn.Linear(width, (config.depth * count + 2) * width)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Xavier for every projection, N(0, 0.02) for the embeddings, zero for modulation, condition and output.

        Source: Peebles and Xie 2023, section 3.2 and its code.
        """
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for embedding in cast(Iterable[Conditioning], self.conditioning):
            for weight in embedding.weights():
                nn.init.normal_(weight, std=0.02)
        silent: list[nn.Module] = [self.modulation, self.final_layer.linear]
        silent += [block.cross_attn.proj for block in self.blocks_in_order() if block.cross_attn is not None]
        silent += [block.injection for block in self.blocks_in_order() if block.injection is not None]
        for module in silent + ([] if self.cond_embed is None else [self.cond_embed]):
            for parameter in module.parameters():
                nn.init.zeros_(parameter)

    def blocks_in_order(self) -> list[DiTBlock]:
        return list(cast(Iterable[DiTBlock], self.blocks))

    def _denoise(
        self, x: Tensor, rows: Tensor, context: Context | None, kept: list[Tensor | None], cond: Tensor | None
    ) -> Tensor:
        frames, height, width = x.shape[2:]
        grid = (-(-frames // self.config.patch[0]), height // self.config.patch[1], width // self.config.patch[2])
        *modulations, final = rows.unflatten(1, (-1, self.config.width)).split(self._vectors(), dim=1)
        ropes = self._ropes(grid, x.device)
        known = None if self.condition is None or cond is None else self.condition(cond)
        # Closed where blocks are recomputed, so that one activation is kept per block instead of two.
        close = self.config.gradient_checkpointing and torch.is_grad_enabled()
        stream = Stream(self._tokens(x, cond, grid))
        for index, (block, keys_values) in enumerate(zip(self.blocks_in_order(), kept)):
            if index == 1 and self.config.attention == "interleaved" and self.config.positions == "sincos":
                stream = Stream(self._with_frame_positions(stream.closed(), grid[0]))
            stream = self._run(block, stream, modulations[index], ropes, context, keys_values, known, close)
        tokens = self.final_layer(stream, *final.unbind(1))
        return unpatchify(tokens, self.config.patch, frames, height, width)

    def _tokens(self, x: Tensor, cond: Tensor | None, grid: tuple[int, int, int]) -> Tensor:
        tokens = self.patch_embed(x)
        if self.cond_embed is not None and cond is not None:
            tokens = tokens + self.cond_embed(cond)
        if self.config.positions != "sincos":
            return tokens
        positions = sincos_grid(*grid[1:], self.config.width, scale=self.config.position_scale, device=x.device)
        tokens = tokens + positions.to(tokens.dtype)
        return tokens if self.config.attention == "interleaved" else self._with_frame_positions(tokens, grid[0])

    def _with_frame_positions(self, tokens: Tensor, frames: int) -> Tensor:
        """Images have no place in time. Interleaved, the frames' positions enter with the first block over time."""
        if frames == 1:
            return tokens
        positions = sincos_positions(torch.arange(frames, device=tokens.device), self.config.width)
        return tokens + positions[:, None].to(tokens.dtype)

    def _ropes(self, grid: tuple[int, int, int], device: torch.device) -> dict[Axis, Tables]:
        sizes = {"space": grid[1:], "time": grid[:1], "joint": grid}
        return {cast(Axis, axis): tables(*sizes[axis], device=device) for axis, tables in self.rotary.items()}

    def modulations(self, t: Tensor, y: Tensor | None = None, r: Tensor | None = None) -> Tensor:
        """Shift, scale and gate of every branch, then shift and scale of the final layer, (B, W)."""
        embeddings = [embed(t, y, r) for embed in self.conditioning]
        if isinstance(self.modulation, nn.ModuleList):
            parts = [linear(F.silu(c)) for linear, c in zip(self.modulation, embeddings + embeddings[:1])]
            return torch.cat(parts, dim=1)
        vectors = self.modulation(F.silu(embeddings[0]))
        if self.tables is None:
            return vectors
        *blocks, final = self.tables.to(vectors.dtype).split(self._vectors())
        shared = vectors.unflatten(1, (-1, self.config.width))
        last = embeddings[0].to(vectors.dtype)[:, None] + final
        return torch.cat([*(shared + table for table in blocks), last], dim=1).flatten(1)

    def _vectors(self) -> list[int]:
        """How many vectors modulate each block, and the final layer."""
        return [self.config.modulations] * self.config.depth + [2]

    def _context_tokens(self, context: Tensor | None, batch: int) -> Tensor | None:
        tokens = super()._context_tokens(context, batch)
        return tokens if tokens is None or self.context_projection is None else self.context_projection(tokens)

    def _check_video(self, x: Tensor) -> None:
        along_time, *along_space = self.config.patch
        check_video(x, self.config.in_channels, (along_space[0], along_space[1]), ", the patch")
        if x.shape[2] > 1 and x.shape[2] % along_time:
            below = x.shape[2] // along_time * along_time
            raise ValueError(
                f"{x.shape[2]} frames are not a multiple of the patch's {along_time}; use {below + along_time}"
                f"{f', {below}' if below else ''}, or 1, an image"
            )
