"""Adaptive layer normalisation, and projections that make their modulated input again instead of keeping it."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vdiff_fast import _derivatives, _dispatch, _requested, ops
from vdiff_fast.nn.plain import is_plain


class Modulated(NamedTuple):
    """y = LN(x) * (1 + scale) + shift beside what it was made of.

    A projection that reads y keeps x, which the norm keeps anyway, and makes y again in its backward.
    """

    y: Tensor
    x: Tensor
    shift: Tensor
    scale: Tensor
    eps: float

    def again(self) -> Tensor:
        return ops.layer_norm_modulate(self.x, self.shift, self.scale, eps=self.eps)


def modulated(x: Tensor, shift: Tensor, scale: Tensor, eps: float = 1e-6) -> Modulated:
    """`vf.ops.layer_norm_modulate` with its inputs."""
    return Modulated(ops.layer_norm_modulate(x, shift, scale, eps=eps), x, shift, scale, eps)


def gated_modulated(
    residual: Tensor, branch: Tensor, gate: Tensor, shift: Tensor, scale: Tensor, eps: float = 1e-6
) -> Modulated:
    """`vf.ops.gated_residual_norm_modulate`; the new residual is the result's x."""
    x, y = ops.gated_residual_norm_modulate(residual, branch, gate, shift, scale, eps=eps)
    return Modulated(y, x, shift, scale, eps)


class AdaLayerNorm(nn.LayerNorm):
    """y = LN(x) * (1 + scale) + shift, [shift | scale] = Linear(SiLU(embedding)).

    Args:
        normalized_shape, eps, elementwise_affine, bias: as torch.nn.LayerNorm; one axis; affine only on request.
        embedding_dim: width of the embedding, (B, E), or (B, T, E) for one per frame. The projection starts at zero, so
            that a new module is LayerNorm.

    Shape: x (B, ..., D), embedding (B, E) -> the shape of x.

    Raises:
        ValueError: normalized_shape names more than one axis.

    Source: Peebles and Xie 2023, "Scalable Diffusion Models with Transformers", section 3.2 (adaLN).
    """

    def __init__(
        self,
        normalized_shape: int | list[int] | torch.Size,
        embedding_dim: int,
        eps: float = 1e-6,
        elementwise_affine: bool = False,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(normalized_shape, eps, elementwise_affine, bias, device, dtype)
        if len(self.normalized_shape) != 1:
            raise ValueError(f"AdaLayerNorm: normalized_shape is the width, got {self.normalized_shape}")
        self.projection = nn.Linear(embedding_dim, 2 * self.normalized_shape[0], device=device, dtype=dtype)
        nn.init.zeros_(self.projection.weight)
        nn.init.zeros_(self.projection.bias)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:  # type: ignore[override]  # the embedding modulates
        shift, scale = self.projection(F.silu(embedding)).chunk(2, dim=-1)
        return ops.layer_norm_modulate(x, shift, scale, weight=self.weight, bias=self.bias, eps=self.eps)


class AdaLayerNormZero(nn.Module):
    """(y, gate, shift_2, scale_2, gate_2): y = LN(x) * (1 + scale) + shift; all six from Linear(SiLU(embedding)).

    `gate` scales the branch that reads y; the last three serve the second branch of a transformer block:

    >>> y, gate, shift, scale, mlp_gate = norm(x, embedding)
    >>> x, y = vf.ops.gated_residual_norm_modulate(x, attention(y), gate, shift, scale)
    >>> x = vf.ops.gated_residual(x, mlp(y), mlp_gate)

    Args:
        embedding_dim: width D of x and of the embedding.
        eps: of the norm.
        bias: of the projection, which starts at zero, so that a block with it starts as the identity.

    Shape: x (B, ..., D), embedding (B, D) -> y like x, and four of (B, D).

    Source: Peebles and Xie 2023, "Scalable Diffusion Models with Transformers", section 3.2 (adaLN-Zero).
    """

    def __init__(self, embedding_dim: int, *, eps: float = 1e-6, bias: bool = True) -> None:
        super().__init__()
        self.eps = eps
        self.linear = nn.Linear(embedding_dim, 6 * embedding_dim, bias=bias)
        for parameter in self.linear.parameters():
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor, embedding: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        shift, scale, gate, shift_2, scale_2, gate_2 = self.linear(F.silu(embedding)).chunk(6, dim=-1)
        return ops.layer_norm_modulate(x, shift, scale, eps=self.eps), gate, shift_2, scale_2, gate_2


# Projections


def _cast(like: Tensor, *parameters: Tensor | None) -> tuple[Tensor | None, ...]:
    """What autocast would do to a Linear's parameters; outside the Functions, so that it is differentiated as such."""
    dtype = _dispatch.autocast_dtype(like)
    return parameters if dtype is None else tuple(None if p is None else p.to(dtype) for p in parameters)


def remakes(source: Modulated) -> bool:
    """Whether a projection keeps the source's inputs instead of y.

    Not under torch.compile, which decides for itself what to make again, nor where the reference was asked for, which
    keeps what plain torch keeps, nor in forward mode and under transforms, where the reference runs.
    """
    if torch.compiler.is_compiling() or not torch.is_grad_enabled() or _derivatives.transformed():
        return False
    if _dispatch.autocast_dtype(source.y) not in (None, source.y.dtype):
        return False
    return _requested.requested("layer_norm_modulate") != "reference"


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(
        y: Tensor, weight: Tensor, bias: Tensor | None, x: Tensor, shift: Tensor, scale: Tensor, eps: float
    ) -> Tensor:
        return F.linear(y, weight, bias)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, weight, bias, x, shift, scale, ctx.eps = inputs
        ctx.has_bias = bias is not None
        ctx.save_for_backward(weight, x, shift, scale)

    @staticmethod
    def backward(ctx: Any, dout: Tensor) -> tuple[Any, ...]:
        weight, x, shift, scale = ctx.saved_tensors
        rows = dout.reshape(-1, dout.shape[-1])
        dy = dweight = dbias = None
        if ctx.needs_input_grad[0]:
            dy = (rows @ weight).reshape(x.shape)
        if ctx.needs_input_grad[1]:
            y = ops.layer_norm_modulate(x, shift, scale, eps=ctx.eps)
            dweight = rows.t() @ y.reshape(-1, y.shape[-1])
        if ctx.has_bias and ctx.needs_input_grad[2]:
            dbias = rows.sum(0)
        return dy, dweight, dbias, None, None, None, None


def modulated_linear(source: Modulated, linear: nn.Module) -> Tensor:
    """linear(source.y); of a plain `nn.Linear` y is not kept for the backward but made again, see `Modulated`."""
    if not (remakes(source) and is_plain(linear, nn.Linear)):
        return linear(source.y)
    weight, bias = _cast(source.y, linear.weight, linear.bias)  # type: ignore[arg-type]  # those of a Linear
    return _Linear.apply(source.y, weight, bias, source.x, source.shift, source.scale, source.eps)


def _mlp(y: Tensor, w1: Tensor, b1: Tensor, w2: Tensor) -> Tensor:
    return F.linear(ops.gelu_tanh(F.linear(y, w1), b1), w2)


class _MLP(torch.autograd.Function):
    """Keeps h = W1 y, and makes y and GELU(h + b1) again: half of what plain torch keeps."""

    @staticmethod
    def forward(
        y: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor, x: Tensor, shift: Tensor, scale: Tensor, eps: float
    ) -> tuple[Tensor, Tensor]:
        h = F.linear(y, w1)
        return F.linear(ops.gelu_tanh(h, b1), w2, b2), h

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        _, w1, b1, w2, _, x, shift, scale, ctx.eps = inputs
        ctx.mark_non_differentiable(output[1])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(w1, b1, w2, x, shift, scale, output[1])

    @staticmethod
    def backward(ctx: Any, dout: Tensor | None, _: Tensor | None) -> tuple[Any, ...]:
        if dout is None:
            return (None,) * 9
        w1, b1, w2, x, shift, scale, h = ctx.saved_tensors
        if _derivatives.continued():
            y = torch.enable_grad()(ops.layer_norm_modulate)(x, shift, scale, eps=ctx.eps)
            found = _derivatives.gradients(_mlp, (y, w1, b1, w2), dout)
            return *found, dout.flatten(0, -2).sum(0), None, None, None, None
        need_dy, need_dw1, _, need_dw2, need_db2, *_ = ctx.needs_input_grad
        rows = dout.reshape(-1, dout.shape[-1])
        hidden, bias = h.detach().reshape(-1, h.shape[-1]).requires_grad_(), b1.detach().requires_grad_()
        with torch.enable_grad():
            activated = ops.gelu_tanh(hidden, bias)
        dw2 = rows.t() @ activated.detach() if need_dw2 else None
        db2 = rows.sum(0) if need_db2 else None
        dh, db1 = torch.autograd.grad(activated, (hidden, bias), rows @ w2)
        dy, dw1 = (dh @ w1).reshape(x.shape) if need_dy else None, None
        if need_dw1:
            y = ops.layer_norm_modulate(x, shift, scale, eps=ctx.eps)
            dw1 = dh.t() @ y.reshape(-1, y.shape[-1])
        return dy, dw1, db1, dw2, db2, None, None, None, None


class GELUMLP(nn.Module):
    """y = W2 GELU(W1 x + b1) + b2, GELU by its tanh approximation; constructor order and names of timm's Mlp.

    Args:
        in_features: width of x and of y.
        hidden_features: width between.

    Shape: a `Modulated` of (..., D), or a tensor (..., D) -> (..., D).

    Source: Hendrycks and Gimpel 2016, "Gaussian Error Linear Units"; Dosovitskiy et al. 2021, "ViT".
    """

    def __init__(self, in_features: int, hidden_features: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(in_features, hidden_features)
        self.fc2 = nn.Linear(hidden_features, in_features)

    def forward(self, source: Modulated | Tensor) -> Tensor:
        first, second = self.fc1, self.fc2
        y = source if isinstance(source, Tensor) else source.y
        if not is_plain(first, nn.Linear):
            return second(ops.gelu_tanh(first(y)))
        fusible = is_plain(second, nn.Linear) and first.bias is not None and second.bias is not None
        if isinstance(source, Tensor) or not fusible or not remakes(source):
            return second(ops.gelu_tanh(F.linear(y, first.weight), first.bias))
        parameters = _cast(y, first.weight, first.bias, second.weight, second.bias)
        return _MLP.apply(y, *parameters, source.x, source.shift, source.scale, source.eps)[0]
