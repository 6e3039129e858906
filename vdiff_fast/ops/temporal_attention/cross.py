"""Attention of every token to a short context that all of them share, as attention over frames.

A query does not see the other queries, so any n of the T * S tokens may stand for the n frames of one position. With n
at least L, and a divisor of T * S, that is a view of q; keys and values are those of every position, a view of stride
0, padded to n with keys that nobody sees.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

# Fewer queries than the smallest vector of a kernel leave its lanes empty.
MIN_QUERIES = 8

Grouped = tuple[Tensor, Tensor, Tensor, Tensor | None]


def group(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, *, limit: int) -> Grouped | None:
    """q (B, n, T*S/n, heads, d), k and v of the same shape, mask (B, n); None where no n up to `limit` divides T * S.

    Args:
        q: (B, T, S, heads, d).
        k, v: (B, L, 1, heads, d).
        mask: (B, L) or None.
    """
    tokens, keys = q.shape[1] * q.shape[2], k.shape[1]
    n = next((n for n in range(max(keys, MIN_QUERIES), limit + 1) if tokens % n == 0), 0)
    if n == 0 or tokens == 0:
        return None
    if n > keys:
        visible = torch.ones(q.shape[0], keys, dtype=torch.bool, device=q.device) if mask is None else mask
        mask = F.pad(visible, (0, n - keys))
        k, v = (F.pad(x, (0, 0, 0, 0, 0, 0, 0, n - keys)) for x in (k, v))
    positions = tokens // n
    k, v = (x.expand(-1, -1, positions, -1, -1) for x in (k, v))
    return q.flatten(1, 2).unflatten(1, (n, positions)), k, v, mask


def ungroup(out: Tensor, q: Tensor) -> Tensor:
    """The kernel's answer in the shape of q."""
    return out.flatten(1, 2).unflatten(1, q.shape[1:3])
