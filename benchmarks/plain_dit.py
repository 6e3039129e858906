"""DiT and Latte in plain torch: what VideoDiT is compared with. Parameters are named as in their published weights."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vdiff_fast.nn.patch_embedding import sincos_grid, sincos_positions


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return x * (1 + scale[:, None]) + shift[:, None]


class Attention(nn.Module):
    """Multi-head attention over the middle axis of (N, L, D) by torch's SDPA."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class MLP(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))


class Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.attn = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.mlp = MLP(width, 4 * width)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        shift_1, scale_1, gate_1, shift_2, scale_2, gate_2 = self.adaLN_modulation(c).chunk(6, dim=1)
        x = x + gate_1[:, None] * self.attn(modulate(self.norm1(x), shift_1, scale_1))
        return x + gate_2[:, None] * self.mlp(modulate(self.norm2(x), shift_2, scale_2))


class FinalLayer(nn.Module):
    def __init__(self, width: int, outputs: int) -> None:
        super().__init__()
        self.norm_final = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.linear = nn.Linear(width, outputs)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        shift, scale = self.adaLN_modulation(c).chunk(2, dim=1)
        return self.linear(modulate(self.norm_final(x), shift, scale))


class PlainDiT(nn.Module):
    """DiT on images (N, C, H, W), or Latte (variant 1) on videos (B, F, C, H, W) where `frames` is given.

    Latte turns frames and positions by a transposed copy before and after every block over time.
    """

    def __init__(
        self, size: int, patch: int, channels: int, out_channels: int, width: int, depth: int, heads: int,
        num_classes: int = 0, frames: int = 0,
    ) -> None:  # fmt: skip
        super().__init__()
        self.patch, self.out_channels, self.side = patch, out_channels, size // patch
        self.x_embedder = nn.Module()
        self.x_embedder.proj = nn.Conv2d(channels, width, patch, patch)
        self.t_embedder = nn.Module()
        self.t_embedder.mlp = nn.Sequential(nn.Linear(256, width), nn.SiLU(), nn.Linear(width, width))
        self.y_embedder = None
        if num_classes:
            self.y_embedder = nn.Module()
            self.y_embedder.embedding_table = nn.Embedding(num_classes + 1, width)
        self.pos_embed = nn.Parameter(sincos_grid(self.side, self.side, width)[None], requires_grad=False)
        if frames:
            self.temp_embed = nn.Parameter(sincos_positions(torch.arange(frames), width)[None], requires_grad=False)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.final_layer = FinalLayer(width, patch * patch * out_channels)

    def _condition(self, t: Tensor, y: Tensor | None) -> Tensor:
        frequencies = torch.exp(torch.arange(128, device=t.device) * (-math.log(10000.0) / 128))
        angles = t[:, None].float() * frequencies
        c = self.t_embedder.mlp(torch.cat([angles.cos(), angles.sin()], dim=1))
        return c if self.y_embedder is None else c + self.y_embedder.embedding_table(y)

    def _images(self, patches: Tensor) -> Tensor:
        p, side = self.patch, self.side
        cells = patches.unflatten(1, (side, side)).unflatten(-1, (p, p, self.out_channels))
        return cells.permute(0, 5, 1, 3, 2, 4).reshape(len(patches), self.out_channels, side * p, side * p)

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        if x.dim() == 4:
            return self._image_forward(x, self._condition(t, y))
        b, f = x.shape[:2]
        c = self._condition(t, y)
        over_space, over_time = c.repeat_interleave(f, 0), c.repeat_interleave(self.side**2, 0)
        h = self.x_embedder.proj(x.flatten(0, 1)).flatten(2).transpose(1, 2) + self.pos_embed
        for i in range(0, len(self.blocks), 2):
            h = self.blocks[i](h, over_space)
            h = h.unflatten(0, (b, f)).transpose(1, 2).flatten(0, 1)
            h = self.blocks[i + 1](h if i else h + self.temp_embed, over_time)
            h = h.unflatten(0, (b, -1)).transpose(1, 2).flatten(0, 1)
        return self._images(self.final_layer(h, over_space)).unflatten(0, (b, f))

    def _image_forward(self, x: Tensor, c: Tensor) -> Tensor:
        h = self.x_embedder.proj(x).flatten(2).transpose(1, 2) + self.pos_embed
        for block in self.blocks:
            h = block(h, c)
        return self._images(self.final_layer(h, c))
