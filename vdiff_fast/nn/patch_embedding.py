"""Videos as tokens of patches and back, and the places of the patches."""

from __future__ import annotations

import torch
from torch import Tensor, nn

Patch = tuple[int, int, int]


def patchify(x: Tensor, patch: Patch) -> Tensor:
    """x (B, C, T, H, W) -> (B, T/pt, (H/ph)(W/pw), pt ph pw C): one copy of the video, none of an activation.

    One frame is an image: it is repeated pt times.
    """
    pt, ph, pw = patch
    if x.shape[2] == 1 and pt > 1:
        x = x.expand(-1, -1, pt, -1, -1)
    b, c, t, h, w = x.shape
    cells = x.movedim(1, -1).reshape(b, t // pt, pt, h // ph, ph, w // pw, pw, c)
    return cells.permute(0, 1, 3, 5, 2, 4, 6, 7).reshape(b, t // pt, (h // ph) * (w // pw), pt * ph * pw * c)


def unpatchify(tokens: Tensor, patch: Patch, frames: int, height: int, width: int) -> Tensor:
    """The inverse of `patchify`: tokens (B, T/pt, S, pt ph pw C) -> (B, C, T, H, W) in channels-last memory.

    The pt frames of an image (frames = 1) are averaged.
    """
    pt, ph, pw = patch
    b, t, _, features = tokens.shape
    h, w, c = height // ph, width // pw, features // (pt * ph * pw)
    cells = tokens.reshape(b, t, h, w, pt, ph, pw, c).permute(0, 1, 4, 2, 5, 3, 6, 7)
    video = cells.reshape(b, t * pt, height, width, c)
    if frames == 1 and pt > 1:
        video = video.mean(1, keepdim=True)
    return video.movedim(-1, 1)


class PatchEmbed(nn.Module):
    """tokens = W patch + b over patches of pt frames x ph rows x pw columns that do not overlap.

    A convolution whose stride is its kernel, as one matrix product over the channels-last memory.

    Args:
        in_channels: of the video.
        width: of the tokens.
        patch: (pt, ph, pw).
        bias: add b.

    Shape: x (B, C, T, H, W), any layout -> (B, T/pt, S, width) with S = (H/ph)(W/pw); T = 1 is repeated pt times.

    Source: Dosovitskiy et al. 2021, "ViT", eq. 1; tubelets: Arnab et al. 2021, "ViViT", section 3.2.
    """

    def __init__(self, in_channels: int, width: int, patch: Patch = (1, 2, 2), *, bias: bool = True) -> None:
        super().__init__()
        self.patch = patch
        self.proj = nn.Linear(in_channels * patch[0] * patch[1] * patch[2], width, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(patchify(x, self.patch))

    def extra_repr(self) -> str:
        return f"patch={self.patch}"


def sincos_positions(positions: Tensor, dim: int, *, max_period: float = 10000.0) -> Tensor:
    """[sin(p f_i) | cos(p f_i)], f_i = max_period^(-2i/dim), i < dim/2: float32 (positions, dim), computed in float64.

    Raises:
        ValueError: dim is odd.

    Source: Vaswani et al. 2017, "Attention Is All You Need", section 3.5.
    """
    if dim % 2:
        raise ValueError(f"sincos_positions: dim must be even, got {dim}")
    exponent = torch.arange(dim // 2, device=positions.device, dtype=torch.float64) / (dim // 2)
    angle = positions.double()[:, None] * torch.pow(max_period, -exponent)
    return torch.cat([angle.sin(), angle.cos()], dim=1).float()


def sincos_grid(
    height: int, width: int, dim: int, *, scale: float = 1.0, device: torch.device | str | None = None
) -> Tensor:
    """Sin-cos positions (height * width, dim) of a frame's patches: half from the column, half from the row.

    Args:
        height, width: patches of a frame.
        dim: of the tokens, a multiple of 4.
        scale: multiplies rows and columns, to read a larger frame as a finer grid.

    Source: Dosovitskiy et al. 2021, "ViT", appendix D.4; Peebles and Xie 2023, section 3.2.
    """
    columns, rows = (
        sincos_positions(torch.arange(n, device=device, dtype=torch.float64) * scale, dim // 2) for n in (width, height)
    )
    parts = (columns[None].expand(height, -1, -1), rows[:, None].expand(-1, width, -1))
    return torch.cat(parts, dim=-1).flatten(0, 1)
