"""Norms over the channels of a video, in the autoencoders of diffusers 0.42."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from vdiff_fast.ops.group_norm_silu import group_norm_silu
from vdiff_fast.ops.rms_norm_silu import rms_norm_silu
from vdiff_fast.patch.families.rows import NormRow
from vdiff_fast.patch.recognise import GROUP_NORM, computes

_MODELS = "diffusers.models.autoencoders.autoencoder_kl_"
# F.normalize divides by max(norm, 1e-12); squared, and far below what a mean square in float32 can be otherwise.
_NORMALIZE_EPS = 1e-24


def _unit_rms(norm: Any, x: Tensor, activation: str) -> Tensor:
    """F.normalize(x, dim=1) * sqrt(C) * gamma."""
    return rms_norm_silu(x, norm.gamma.flatten(), eps=_NORMALIZE_EPS, activation=activation)


def _over_channels(norm: Any, x: Tensor) -> bool:
    first = getattr(norm, "channel_first", True) and not isinstance(getattr(norm, "bias", 0.0), Tensor)
    return first and x.dim() >= 3 and x.shape[1] == norm.gamma.numel()


def _root_mean_square(norm: Any, x: Tensor, activation: str) -> Tensor:
    """x / sqrt(mean_C(x^2) + eps)."""
    return rms_norm_silu(x, eps=norm.eps, activation=activation)


def _of_frames(norm: Any, x: Tensor, activation: str) -> Tensor:
    """GroupNorm whose statistics run over one frame, without folding frames into the batch."""
    return group_norm_silu(
        x, norm.num_groups, norm.weight, norm.bias, norm.eps, per_frame=True, activation=activation
    )  # fmt: skip


def _mochi(norm: Any, x: Tensor, activation: str) -> Tensor:
    return _of_frames(norm.norm_layer, x, activation)


def _cosmos(norm: Any, x: Tensor, activation: str) -> Tensor:
    """Over a frame where there is one group, over the clip where there are more."""
    inner = norm.norm
    if norm.num_groups == 1:
        return _of_frames(inner, x, activation)
    return group_norm_silu(x, inner.num_groups, inner.weight, inner.bias, inner.eps, activation=activation)


ROWS = (
    NormRow(f"{_MODELS}wan", "WanRMS_norm", "fc44101b6513", "rms_norm_silu", _unit_rms, _over_channels),
    NormRow(f"{_MODELS}qwenimage", "QwenImageRMS_norm", "fc44101b6513", "rms_norm_silu", _unit_rms, _over_channels),
    NormRow(
        f"{_MODELS}hunyuanvideo15", "HunyuanVideo15RMS_norm", "fc44101b6513", "rms_norm_silu", _unit_rms,
        _over_channels,
    ),
    NormRow(
        f"{_MODELS}ltx2", "PerChannelRMSNorm", "b013e7d05857", "rms_norm_silu", _root_mean_square,
        lambda norm, x: norm.channel_dim == 1 and x.dim() >= 3,
    ),
    NormRow(
        f"{_MODELS}mochi", "MochiChunkedGroupNorm3D", "765ff3f4a4c0", "group_norm_silu", _mochi,
        lambda norm, x: x.dim() == 5 and computes(norm.norm_layer, GROUP_NORM),
    ),
    NormRow(
        f"{_MODELS}cosmos", "CosmosCausalGroupNorm", "3cb10a817932", "group_norm_silu", _cosmos,
        lambda norm, x: x.dim() == 5 and computes(norm.norm, GROUP_NORM),
    ),
    NormRow(
        f"{_MODELS}minimax_h3", "MiniMaxH3VideoGroupNorm", "e2d4e3b73e65", "group_norm_silu", _of_frames,
        lambda norm, x: x.dim() == 5,
    ),
)  # fmt: skip
