"""Norms over the last axis of tokens, in the transformers of diffusers 0.42."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from vdiff_fast.ops.rms_norm_silu import rms_norm_silu
from vdiff_fast.patch.families.rows import NormRow, fingerprint
from vdiff_fast.patch.fused_class import unfused_class
from vdiff_fast.patch.recognise import inherits_forward

_NORMS = "diffusers.models.normalization"


def _root_mean_square(norm: Any, x: Tensor, activation: str) -> Tensor:
    """x / sqrt(mean(x^2) + eps) * weight over the last axis: tokens are the positions of a channels-last clip."""
    rows = x.reshape(1, -1, x.shape[-1]).transpose(1, 2)
    return rms_norm_silu(rows, norm.weight, eps=norm.eps, activation=activation).transpose(1, 2).reshape(x.shape)


def _over_last(norm: Any, x: Tensor) -> bool:
    weight = norm.weight
    # The dtype of a half-precision weight is given to what it multiplies, also under autocast.
    fits = weight is None or (weight.dim() == 1 and weight.shape[0] == x.shape[-1] and weight.dtype == x.dtype)
    return fits and x.dim() >= 2 and getattr(norm, "bias", None) is None


ROWS = (
    NormRow(_NORMS, "RMSNorm", "ab9075d03687", "rms_norm_silu", _root_mean_square, _over_last),
    NormRow(_NORMS, "MochiRMSNorm", "db65c97da287", "rms_norm_silu", _root_mean_square, _over_last),
)


# diffusers' LayerNorm of float32 values between casts.
_FP32_LAYER_NORM = (_NORMS, "FP32LayerNorm", "fb3a8812f75a")


# Which of the subclasses that were met are no more than that.
_LAYER_NORMS: dict[type[nn.LayerNorm], bool] = {}


def is_layer_norm(norm: Any) -> bool:
    """Whether a module is torch's LayerNorm, or the same between casts to float32 and back."""
    if not isinstance(norm, nn.LayerNorm):
        return False
    cls = type(norm)
    if cls not in _LAYER_NORMS:
        _LAYER_NORMS[cls] = _computes_layer_norm(unfused_class(norm))
    return _LAYER_NORMS[cls]


def _computes_layer_norm(cls: type[nn.Module]) -> bool:
    module, name, source = _FP32_LAYER_NORM
    is_wide = (cls.__module__, cls.__qualname__) == (module, name) and fingerprint(cls) == source
    return is_wide or inherits_forward(cls, nn.LayerNorm)
