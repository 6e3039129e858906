"""Public function: errors, backend choice, autograd."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from vdiff_fast import _derivatives, _dispatch
from vdiff_fast.ops._common.layer_norm_config import why_not_cuda, why_not_triton
from vdiff_fast.ops._common.modulation import check_tokens, like_tokens, modulations, summed_over_runs, tokens
from vdiff_fast.ops.gated_residual.reference import gated_residual
from vdiff_fast.ops.gated_residual_norm_modulate import reference
from vdiff_fast.ops.layer_norm_modulate.reference import layer_norm_modulate

_OP = "gated_residual_norm_modulate"
PREDICATES = _dispatch.predicates(__package__, triton=why_not_triton, cuda=why_not_cuda)
_KERNELS = _dispatch.kernel_modules(__package__)


class _GatedResidualNormModulate(torch.autograd.Function):
    """Saves the new residual, the branch, the vectors, and three numbers per token."""

    @staticmethod
    def forward(
        residual: Tensor, branch: Tensor, gate: Tensor, shift: Tensor, scale: Tensor, eps: float, backend: str
    ) -> tuple[Tensor, Tensor, Tensor]:
        h, y, statistics = _KERNELS[backend].forward(tokens(residual), tokens(branch), gate, shift, scale, eps)
        return h.view(residual.shape), y.view(residual.shape), statistics

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
        _, branch, gate, _, scale, ctx.eps, ctx.backend = inputs
        ctx.mark_non_differentiable(output[2])
        # Neither output need be used: an absent gradient is not filled with zeros and read.
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(output[0], branch, gate, scale, output[2])

    @staticmethod
    def backward(ctx: Any, dh: Tensor | None, dy: Tensor | None, dstatistics: None) -> tuple[Tensor | None, ...]:
        if dh is None and dy is None:
            return (None,) * 7
        h, branch, gate, scale, statistics = ctx.saved_tensors
        if _derivatives.continued():
            return *_formula_gradients(dh, dy, h, branch, gate, scale, ctx.eps), None, None
        dy = torch.zeros_like(h) if dy is None else dy
        dresidual, dbranch, *vectors = _KERNELS[ctx.backend].backward(
            tokens(dy), None if dh is None else tokens(dh), tokens(h), tokens(branch), gate, scale, statistics
        )
        return dresidual.view(h.shape), dbranch.view(h.shape), *vectors, None, None


def _gated(branch: Tensor, gate: Tensor) -> Tensor:
    """gate * branch, as the kernels take them."""
    return gated_residual(torch.zeros_like(tokens(branch)), tokens(branch), gate).view(branch.shape)


def _norm(eps: float, h: Tensor, scale: Tensor) -> Tensor:
    """y without the shift, as the kernels take h and scale."""
    return layer_norm_modulate(tokens(h), torch.zeros_like(scale), scale, eps=eps).view(h.shape)


def _formula_gradients(
    dh: Tensor | None, dy: Tensor | None, h: Tensor, branch: Tensor, gate: Tensor, scale: Tensor, eps: float
) -> tuple[Tensor | None, ...]:
    """Gradients of residual, branch, gate, shift and scale by the references' formulas: those of y, then those of h."""
    dshift = dscale = None
    if dy is not None:
        of_h, dscale = _derivatives.gradients(partial(_norm, eps), (h, scale), dy)
        dshift = summed_over_runs(tokens(dy), scale.shape[1])
        dh = of_h if dh is None or of_h is None else dh + of_h
    if dh is None:
        return None, None, None, dshift, dscale
    return dh, *_derivatives.gradients(_gated, (branch, gate), dh), dshift, dscale


def gated_residual_norm_modulate(
    residual: Tensor, branch: Tensor, gate: Tensor, shift: Tensor, scale: Tensor, *, eps: float = 1e-6
) -> tuple[Tensor, Tensor]:
    """h = residual + gate * branch, y = (h - mean) / sqrt(var + eps) * (1 + scale) + shift, over the last axis.

    What stands between two branches of an adaLN-Zero block, in one pass.

    Args:
        residual, branch: (B, ..., D), usually tokens (B, T, S, D) or (B, N, D); float32, bfloat16, float16 (float64 on
            CPU). Contiguous is read as it is, other strides cost one copy; a branch of another dtype is converted.
        gate, shift, scale: (B, D), one per sample; (B, F, D), one per run of N/F of the N tokens of a sample, so F = T
            is per frame and F = N per token; or x's rank with 1 for the axes they do not vary over. Read by stride: a
            chunk of one Linear's output is not copied. Of another dtype they are converted to the residual's.
        eps: added to the variance.

    Returns:
        (h, y): the new residual and its modulated norm, both in the residual's shape and dtype, contiguous. Moves 4
        activations forward, 6 backward; saved for the backward are h, branch, the vectors, and three numbers per token.

    Raises:
        TypeError: the residual is not floating point.
        ValueError: the branch or a vector has the wrong shape or device.

    Source: Peebles and Xie 2023, "Scalable Diffusion Models with Transformers", section 3.2 (adaLN-Zero).
    """
    check_tokens(_OP, "residual", residual)
    branch = like_tokens(_OP, "branch", branch, residual)
    vectors = modulations(_OP, residual, gate=gate, shift=shift, scale=scale)
    backend = _dispatch.choose(_OP, PREDICATES, residual)
    if backend == "reference":
        return _dispatch.call_reference(
            reference.gated_residual_norm_modulate, residual, branch, gate, shift, scale, eps=eps
        )
    tensors = (residual.contiguous(), branch.contiguous(), *vectors)
    h, y, _ = _dispatch.apply(_GatedResidualNormModulate, *tensors, float(eps), backend)
    return h, y
