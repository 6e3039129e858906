"""torch's scaled_dot_product_attention and xformers on strided views of (B, T, S, heads, d)."""

from __future__ import annotations

import importlib.util

import torch
from torch import Tensor
from torch.nn import functional as F

XFORMERS_REASON: str | None = (
    None if importlib.util.find_spec("xformers") is not None else "xformers is not installed (pip install xformers)"
)


def _frames(x: Tensor) -> Tensor:
    """(B, T, S, heads, d) as (B*T, S, heads, d): a view wherever B and T lie as in one tensor."""
    return x.flatten(0, 1)


def sdpa(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """The fastest of torch's own backends; its output and gradients lie in memory as (B*T, S, heads, d)."""
    out = F.scaled_dot_product_attention(
        _frames(q).transpose(1, 2), _frames(k).transpose(1, 2), _frames(v).transpose(1, 2), scale=scale
    )
    return out.transpose(1, 2).unflatten(0, (q.shape[0], q.shape[1]))


def xformers(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """xformers' memory_efficient_attention, which takes (batch, tokens, heads, d) as it is."""
    from xformers.ops import memory_efficient_attention

    out: Tensor = memory_efficient_attention(_frames(q), _frames(k), _frames(v), scale=scale)
    return out.unflatten(0, (q.shape[0], q.shape[1]))


def why_not_sdpa(x: Tensor, *facts: object) -> str | None:
    """torch's own attention runs on every device."""
    return None


def why_not_xformers(x: Tensor, *facts: object) -> str | None:
    """xformers: installed, a CUDA tensor."""
    if XFORMERS_REASON is not None:
        return XFORMERS_REASON
    if x.device.type != "cuda":
        return f"the tensor is on {x.device.type}"
    if x.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return f"{x.dtype} is not one of float32, bfloat16, float16"
    return None
