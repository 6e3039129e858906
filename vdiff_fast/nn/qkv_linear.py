"""One projection to queries, keys and values whose backward takes their gradients apart.

The attention of the libraries returns dq, dk and dv apart; sent through `unbind` they would be stacked into one tensor,
which reads and writes three activations for nothing.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vdiff_fast import _derivatives, _dispatch, ops
from vdiff_fast.nn.modulation import Modulated, remakes
from vdiff_fast.nn.plain import is_plain

Parts = tuple[Tensor, Tensor, Tensor]


def _rows(x: Tensor, width: int) -> Tensor:
    return x.reshape(-1, width)


def _projected(x: Tensor, weight: Tensor, bias: Tensor | None, heads: int) -> Parts:
    q, k, v = F.linear(x, weight, bias).unflatten(-1, (3, heads, -1)).unbind(-3)
    return q, k, v


def _stacked_products(parts: list[Tensor], rows: Tensor, weight: Tensor) -> Tensor:
    """parts[i]^T rows, one under the other."""
    if torch.compiler.is_compiling() or _derivatives.continued():
        return torch.cat([part.t() @ rows for part in parts])
    width, out = weight.shape[0] // 3, torch.empty_like(weight)
    for i, part in enumerate(parts):
        torch.mm(part.t(), rows, out=out[i * width : (i + 1) * width])
    return out


class _QKVLinear(torch.autograd.Function):
    """Keeps x, or where x was modulated what it was made of."""

    @staticmethod
    def forward(
        x: Tensor, weight: Tensor, bias: Tensor | None, heads: int,
        origin: Tensor | None, shift: Tensor | None, scale: Tensor | None, eps: float,
    ) -> Parts:  # fmt: skip
        return _projected(x, weight, bias, heads)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Parts) -> None:
        x, weight, bias, _, origin, shift, scale, ctx.eps = inputs
        ctx.has_bias, ctx.modulated = bias is not None, origin is not None
        ctx.save_for_backward(x if origin is None else origin, weight, shift, scale)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, shift, scale = ctx.saved_tensors
        width = weight.shape[0] // 3
        parts = [_rows(g, width) for g in gradients]
        dx = dweight = dbias = None
        if ctx.needs_input_grad[0]:
            dx = parts[0] @ weight[:width]
            for i in (1, 2):
                dx.addmm_(parts[i], weight[i * width : (i + 1) * width])
            dx = dx.reshape(x.shape)
        if ctx.needs_input_grad[1]:
            if ctx.modulated:
                x = ops.layer_norm_modulate(x, shift, scale, eps=ctx.eps)
            dweight = _stacked_products(parts, _rows(x, x.shape[-1]), weight)
        if ctx.has_bias and ctx.needs_input_grad[2]:
            dbias = torch.cat([part.sum(0) for part in parts])
        return dx, dweight, dbias, None, None, None, None, None


def qkv_linear(x: Tensor | Modulated, weight: Tensor, bias: Tensor | None, heads: int) -> Parts:
    """q, k, v = x W^T + b, split in three and in heads; the gradients of the three are never stacked.

    Args:
        x: (..., C), or a `Modulated`, which is not kept for the backward but made again.
        weight: (3 * heads * d, C), as of one Linear.
        bias: (3 * heads * d,) or None.
        heads: attention heads.

    Returns:
        Three views (..., heads, d) of one tensor.

    Raises:
        ValueError: weight does not divide into three parts of `heads` heads.
    """
    if weight.shape[0] % (3 * heads):
        raise ValueError(f"qkv_linear: {weight.shape[0]} outputs are not 3 x {heads} heads x d")
    origin: tuple[Tensor | None, Tensor | None, Tensor | None, float] = (None, None, None, 0.0)
    if isinstance(x, Modulated):
        origin = (x.x, x.shift, x.scale, x.eps) if remakes(x) else origin
        x = x.y
    dtype = _dispatch.autocast_dtype(x)
    if dtype is not None:
        # Outside the Function, so that the casts are Linear's own and are differentiated as such.
        x, weight = x.to(dtype), weight.to(dtype)
        bias = None if bias is None else bias.to(dtype)
    if _derivatives.transformed():
        q, k, v = _projected(x, weight, bias, heads)
    else:
        q, k, v = _QKVLinear.apply(x, weight, bias, heads, *origin)
    return q, k, v


def project_qkv(x: Tensor | Modulated, linear: nn.Module, heads: int) -> Parts:
    """`qkv_linear` with the parameters of a plain `nn.Linear`; any other module is called, and its output split."""
    if is_plain(linear, nn.Linear):
        return qkv_linear(x, linear.weight, linear.bias, heads)  # type: ignore[arg-type]  # those of a Linear
    q, k, v = linear(x.y if isinstance(x, Modulated) else x).unflatten(-1, (3, heads, -1)).unbind(-3)
    return q, k, v
