"""Normalisation followed by SiLU, as modules: constructor and state_dict of torch's, one kernel in the forward."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vdiff_fast.ops.group_norm_silu import group_norm_silu
from vdiff_fast.ops.rms_norm_silu import rms_norm_silu


class GroupNormSiLU(nn.GroupNorm):
    """y = SiLU(GroupNorm([x | x2] + add) * (1 + scale) + shift); see `vdiff_fast.ops.group_norm_silu`.

    It takes the place of `nn.Sequential(nn.GroupNorm(...), nn.SiLU())`; a subclass may set `activation` to "none".
    """

    activation: ClassVar[str] = "silu"

    def forward(  # type: ignore[override]  # nn.GroupNorm calls x `input`
        self,
        x: Tensor,
        *,
        x2: Tensor | None = None,
        scale: Tensor | None = None,
        shift: Tensor | None = None,
        add: Tensor | None = None,
        per_frame: bool = False,
    ) -> Tensor:
        return group_norm_silu(
            x, self.num_groups, self.weight, self.bias, self.eps,
            x2=x2, scale=scale, shift=shift, add=add, per_frame=per_frame, activation=self.activation,
        )  # fmt: skip


class AdaGroupNormSiLU(GroupNormSiLU):
    """y = SiLU(GroupNorm(x) * (1 + scale) + shift), [scale | shift] = Linear(SiLU(embedding)) (AdaGN).

    Args:
        num_groups, num_channels, eps, affine: as torch.nn.GroupNorm.
        embedding_dim: width of the embedding, (B, D) or (B, T, D), one per sample or per frame. The projection
            starts at zero, so that a new module is plain GroupNorm and SiLU.

    Source: Dhariwal and Nichol 2021, "Diffusion Models Beat GANs on Image Synthesis", section 3.
    """

    def __init__(
        self,
        num_groups: int,
        num_channels: int,
        embedding_dim: int,
        eps: float = 1e-5,
        affine: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(num_groups, num_channels, eps, affine, device, dtype)
        self.projection = nn.Linear(embedding_dim, 2 * num_channels, device=device, dtype=dtype)
        nn.init.zeros_(self.projection.weight)
        nn.init.zeros_(self.projection.bias)

    def forward(  # type: ignore[override]  # the embedding decides scale and shift
        self,
        x: Tensor,
        embedding: Tensor,
        *,
        x2: Tensor | None = None,
        add: Tensor | None = None,
        per_frame: bool = False,
    ) -> Tensor:
        scale, shift = self.projection(F.silu(embedding)).chunk(2, dim=-1)
        return super().forward(x, x2=x2, scale=scale, shift=shift, add=add, per_frame=per_frame)


class RMSNormSiLU(nn.RMSNorm):
    """y = SiLU(x / sqrt(mean_C(x^2) + eps) * weight * (1 + scale) + shift), over the channels of x (B, C, ...).

    torch.nn.RMSNorm normalises the last axes; here `normalized_shape` is the number of channels, axis 1. eps is the
    machine epsilon of x's dtype where it is None, as in torch.

    Raises:
        ValueError: normalized_shape names more than one axis.
    """

    activation: ClassVar[str] = "silu"

    def __init__(
        self,
        normalized_shape: int | list[int] | torch.Size,
        eps: float | None = None,
        elementwise_affine: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(normalized_shape, eps, elementwise_affine, device, dtype)
        if len(self.normalized_shape) != 1:
            raise ValueError(f"RMSNormSiLU: normalized_shape is the number of channels, got {self.normalized_shape}")

    def forward(self, x: Tensor, *, scale: Tensor | None = None, shift: Tensor | None = None) -> Tensor:
        eps = torch.finfo(x.dtype).eps if self.eps is None else self.eps
        return rms_norm_silu(x, self.weight, eps=eps, scale=scale, shift=shift, activation=self.activation)
