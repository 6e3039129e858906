"""Attention of all tokens of a video to a context that they share: the faster of two ops."""

from __future__ import annotations

from torch import Tensor

from vdiff_fast import ops
from vdiff_fast.ops.temporal_attention.api import PREDICATES
from vdiff_fast.ops.temporal_attention.config import CONTEXT_KEYS


def attend_to_context(q: Tensor, keys_values: Tensor, *, qk_norm: tuple[Tensor, Tensor] | None = None) -> Tensor:
    """out = softmax(d ** -0.5 q' k'^T) v for every token, q' and k' after the RMS norms where given.

    Args:
        q: (B, T, S, heads, d).
        keys_values: (B, L, 2 * heads * d), the keys before the values.

    Returns:
        (B, T, S, heads, d).
    """
    heads, d = q.shape[-2:]
    packed = keys_values.unflatten(-1, (2, heads, d))
    length, device = packed.shape[1], q.device.type
    if length <= CONTEXT_KEYS.get(device, 0) and PREDICATES[device](q, qk_norm is not None, length) is None:
        k, v = packed.unsqueeze(2).unbind(3)
        return ops.temporal_attention(q, k, v, qk_norm=qk_norm, eps=1e-6)
    k, v = packed.unsqueeze(1).unbind(3)
    out = ops.spatial_attention(q.flatten(1, 2).unsqueeze(1), k, v, qk_norm=qk_norm, eps=1e-6)
    return out.squeeze(1).unflatten(1, q.shape[1:3])
