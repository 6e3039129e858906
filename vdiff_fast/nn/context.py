"""Attention of all tokens of a video to a context that they share: the faster of two ops, or torch's under a mask."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor
from torch.nn import functional as F

from vdiff_fast import ops
from vdiff_fast.ops.temporal_attention.api import PREDICATES
from vdiff_fast.ops.temporal_attention.config import CONTEXT_KEYS


class Context(NamedTuple):
    """Context tokens (B, L, D), or None where keys and values were made before, and which of them are seen.

    Attributes:
        tokens: see above.
        mask: (B, L) bool, True where a token is seen; None sees all.
    """

    tokens: Tensor | None
    mask: Tensor | None = None


def as_context(context: Tensor | Context | None) -> Context:
    """Bare tokens are a context that is seen in full."""
    return context if isinstance(context, Context) else Context(context)


def attend_to_context(
    q: Tensor, keys_values: Tensor, *, qk_norm: tuple[Tensor, Tensor] | None = None, mask: Tensor | None = None
) -> Tensor:
    """out = softmax(d ** -0.5 q' k'^T) v for every token, q' and k' after the RMS norms where given.

    Args:
        q: (B, T, S, heads, d).
        keys_values: (B, L, 2 * heads * d), the keys before the values.
        qk_norm: weights (d,) of the RMS norms of q and k.
        mask: (B, L) bool, True where a key is seen; each sample sees one key at least.

    Returns:
        (B, T, S, heads, d).
    """
    heads, d = q.shape[-2:]
    packed = keys_values.unflatten(-1, (2, heads, d))
    length, device = packed.shape[1], q.device.type
    if length <= CONTEXT_KEYS.get(device, 0) and PREDICATES[device](q, qk_norm is not None, length) is None:
        k, v = packed.unsqueeze(2).unbind(3)
        return ops.temporal_attention(q, k, v, qk_norm=qk_norm, mask=mask, eps=1e-6)
    k, v = packed.unsqueeze(1).unbind(3)
    if mask is not None:
        return _masked(q, k, v, mask, qk_norm)
    out = ops.spatial_attention(q.flatten(1, 2).unsqueeze(1), k, v, qk_norm=qk_norm, eps=1e-6)
    return out.squeeze(1).unflatten(1, q.shape[1:3])


def _masked(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, qk_norm: tuple[Tensor, Tensor] | None) -> Tensor:
    """Torch's attention, the only one here that takes long contexts with a mask; k and v (B, 1, L, heads, d)."""
    queries = q.flatten(1, 2).unsqueeze(1)
    if qk_norm is not None:
        queries, k = ops.qk_norm_rope(queries, k, qk_norm=qk_norm, eps=1e-6)
    queries, k, v = (tensor.squeeze(1).transpose(1, 2) for tensor in (queries, k, v))
    out = F.scaled_dot_product_attention(queries, k, v, attn_mask=mask[:, None, None])
    return out.transpose(1, 2).unflatten(1, q.shape[1:3])
