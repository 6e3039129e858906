"""Modulated norms and gated residuals of transformer blocks in one pass each, decided anew at every call.

A rewritten forward calls these in the place of `norm(x) * (1 + scale) + shift` and of `residual + gate * branch`. What
the ops cannot take is computed as it was written.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from vdiff_fast.nn.plain import has_plain_parameters, hooked
from vdiff_fast.ops.gated_residual import gated_residual
from vdiff_fast.ops.layer_norm_modulate import layer_norm_modulate
from vdiff_fast.ops.rms_norm_silu import rms_norm_silu
from vdiff_fast.patch.families import row_of
from vdiff_fast.patch.families.rows import DTYPES
from vdiff_fast.patch.families.tokens import is_layer_norm
from vdiff_fast.patch.norm_silu import left_to_inductor

LAYER_NORM_OP, RMS_NORM_OP, GATE_OP = "layer_norm_modulate", "rms_norm_silu", "gated_residual"


def modulated(x: Any, norm: Any, scale: Any, shift: Any) -> Any:
    """norm(x) * (1 + scale) + shift."""
    if _are_tokens(x) and not left_to_inductor(x) and _modulates(scale, x) and _modulates(shift, x):
        if is_layer_norm(norm) and _norm_is_plain(norm, x):
            return layer_norm_modulate(
                x, _of_batch(shift, x), _of_batch(scale, x), weight=norm.weight, bias=norm.bias, eps=norm.eps
            )
        row = row_of(norm)
        if row is not None and row.op == RMS_NORM_OP and row.serves(norm, x):
            return _root_mean_square(norm, x, _of_batch(scale, x), _of_batch(shift, x))
    return norm(x) * (1 + scale) + shift


def gated(residual: Any, first: Any, second: Any) -> Any:
    """residual + first * second, one of which is a gate and the other one a branch."""
    # A residual in another layout (behind a patch embedding) is copied once, and what follows is contiguous.
    if _are_tokens(residual) and not left_to_inductor(residual, pointwise=True):
        for gate, branch in ((first, second), (second, first)):
            same = isinstance(branch, Tensor) and branch.shape == residual.shape and branch.dtype == residual.dtype
            if same and branch.is_contiguous() and _modulates(gate, residual):
                return gated_residual(residual, branch, _of_batch(gate, residual))
    return residual + first * second


def modulation_op(norm: Any) -> str | None:
    """The op that does a norm with its modulation; None where the norm's class is not known."""
    if is_layer_norm(norm):
        return LAYER_NORM_OP
    row = row_of(norm)
    return row.op if row is not None and row.op == RMS_NORM_OP else None


def _are_tokens(x: Any) -> bool:
    return isinstance(x, Tensor) and x.dim() >= 3 and x.dtype in DTYPES and x.numel() > 0


def _modulates(vector: Any, x: Tensor) -> bool:
    """Whether a vector is one per sample, or one per run of tokens, and no wider than x."""
    if not isinstance(vector, Tensor) or vector.dim() != x.dim() or vector.shape[-1] != x.shape[-1]:
        return False
    if vector.device != x.device or torch.promote_types(vector.dtype, x.dtype) != x.dtype:
        return False
    if vector.shape[0] not in (1, x.shape[0]):
        return False
    middle, axes = vector.shape[1:-1], x.shape[1:-1]
    shared = 0
    while shared < len(axes) and middle[shared] == axes[shared]:
        shared += 1
    return all(n == 1 for n in middle[shared:])


def _of_batch(vector: Tensor, x: Tensor) -> Tensor:
    return vector if vector.shape[0] == x.shape[0] else vector.expand(x.shape[0], *vector.shape[1:])


def _norm_is_plain(norm: nn.Module, x: Tensor) -> bool:
    """Whether the norm is what its class says, of x's last axis, and gives x's dtype."""
    fits = getattr(norm, "normalized_shape", None) == (x.shape[-1],)
    keeps = not torch.is_autocast_enabled(x.device.type) or x.dtype in (torch.float32, torch.float64)
    return fits and keeps and not hooked(norm) and has_plain_parameters(norm)


def _root_mean_square(norm: Any, x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """Tokens are the positions, or the frames, of a channels-last clip."""
    b, d = x.shape[0], x.shape[-1]
    per_token = scale[0, ..., 0].numel() > 1 or shift[0, ..., 0].numel() > 1
    clip = x.reshape(b, -1, 1, 1, d).movedim(-1, 1) if per_token else x.reshape(b, -1, d).transpose(1, 2)
    vectors = [v.expand(x.shape) if per_token else v for v in (scale, shift)]
    scale, shift = (v.reshape(b, -1, d) if per_token else v.reshape(b, d) for v in vectors)
    out = rms_norm_silu(clip, norm.weight, eps=norm.eps, scale=scale, shift=shift, activation="none")
    return out.movedim(1, -1).reshape(x.shape)
