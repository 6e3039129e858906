"""What users run today instead of the attention ops: torch's SDPA, xformers and FlexAttention with their copies.

`axis` is the axis of the tokens (B, T, S, heads, d) that is attended over: 1 (frames) or 2 (positions). Inputs are
q, k, v, or one packed (B, T, S, 3, heads, d), whose unbinding backward is a stack.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

Peer = Callable[..., Tensor]
# (B, T, S, heads, d) -> (B, S or T, heads, tokens, d), and back.
_ORDER = {1: (0, 2, 3, 1, 4), 2: (0, 1, 3, 2, 4)}
_BACK = {1: (0, 3, 1, 2, 4), 2: (0, 1, 3, 2, 4)}


def _apart(tokens: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tokens if len(tokens) == 3 else tokens[0].unbind(3)


def _sdpa(axis: int) -> Peer:
    def call(*tokens: Tensor, bias: Tensor | None = None) -> Tensor:
        # Four axes, because the fused kernels take no fifth.
        q, k, v = (x.permute(_ORDER[axis]).flatten(0, 1) for x in _apart(tokens))
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        return out.unflatten(0, (tokens[0].shape[0], tokens[0].shape[3 - axis])).permute(_BACK[axis])

    return call


def _need_cuda(x: Tensor) -> None:
    if x.device.type != "cuda":
        raise RuntimeError(f"needs a CUDA tensor, got one on {x.device.type}")


def _xformers(axis: int) -> Peer:
    def call(*tokens: Tensor, bias: Tensor | None = None) -> Tensor:
        _need_cuda(tokens[0])
        if bias is not None:
            raise NotImplementedError("a bias of 16 frames is not aligned as xformers wants it")
        from xformers.ops import memory_efficient_attention

        # (batch, tokens, heads, d): frames next to the heads cost a copy of each.
        moved = [x.transpose(1, 2) if axis == 1 else x for x in _apart(tokens)]
        out = memory_efficient_attention(*(x.flatten(0, 1) for x in moved)).unflatten(0, moved[0].shape[:2])
        return out.transpose(1, 2) if axis == 1 else out

    return call


def _flex(axis: int) -> Peer:
    def call(*tokens: Tensor, bias: Tensor | None = None) -> Tensor:
        _need_cuda(tokens[0])
        from torch.nn.attention.flex_attention import flex_attention

        q, k, v = (x.permute(_ORDER[axis]).flatten(0, 1) for x in _apart(tokens))

        def add(score: Tensor, batch: Tensor, head: Tensor, t: Tensor, u: Tensor) -> Tensor:
            return score if bias is None else score + bias[head, t, u]

        out: Any = flex_attention(q, k, v, score_mod=add)
        return out.unflatten(0, (tokens[0].shape[0], tokens[0].shape[3 - axis])).permute(_BACK[axis])

    return call


def _compiled(peer: Peer) -> Peer:
    """Compiled at the first call, so that describing an op does not import the compiler."""
    compiled = cache(lambda: torch.compile(peer, dynamic=False))
    return lambda *tokens, **options: compiled()(*tokens, **options)


def attention_peers(axis: int) -> dict[str, Peer]:
    """Name -> the attention over `axis` by that library, permutes and copies included."""
    return {
        "sdpa": _sdpa(axis),
        "sdpa compiled": _compiled(_sdpa(axis)),
        "xformers": _xformers(axis),
        "flex": _compiled(_flex(axis)),
    }
