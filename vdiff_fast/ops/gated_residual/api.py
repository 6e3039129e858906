"""Public function: errors, backend choice, autograd."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vdiff_fast import _derivatives, _dispatch
from vdiff_fast.ops._common.modulation import check_tokens, like_tokens, modulation, tokens
from vdiff_fast.ops.gated_residual import reference

_OP = "gated_residual"
PREDICATES = _dispatch.predicates(__package__)
_KERNELS = _dispatch.kernel_modules(__package__)


class _GatedResidual(torch.autograd.Function):
    """Saves branch and gate."""

    @staticmethod
    def forward(residual: Tensor, branch: Tensor, gate: Tensor, backend: str) -> Tensor:
        return _KERNELS[backend].forward(tokens(residual), tokens(branch), gate).view(residual.shape)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, branch, gate, ctx.backend = inputs
        ctx.save_for_backward(branch, gate)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        branch, gate = ctx.saved_tensors
        if _derivatives.continued():
            return dy, *_derivatives.gradients(_gated, (branch, gate), dy), None
        dbranch, dgate = _KERNELS[ctx.backend].backward(tokens(dy), tokens(branch), gate)
        return dy, dbranch.view(branch.shape), dgate, None


def _gated(branch: Tensor, gate: Tensor) -> Tensor:
    """The reference of what the kernels take, of the residual 0, whose gradient is dy."""
    return reference.gated_residual(torch.zeros_like(tokens(branch)), tokens(branch), gate).view(branch.shape)


def gated_residual(residual: Tensor, branch: Tensor, gate: Tensor) -> Tensor:
    """y = residual + gate * branch: the end of a branch in an adaLN-Zero block.

    Args:
        residual, branch: (B, ..., D), usually tokens (B, T, S, D) or (B, N, D); float32, bfloat16, float16 (float64 on
            CPU). Contiguous is read as it is, other strides cost one copy; a branch of another dtype is converted.
        gate: (B, D), one per sample; (B, F, D), one per run of N/F of the N tokens of a sample, so F = T is per frame
            and F = N per token; or the residual's rank with 1 for the axes it does not vary over. Read by stride. Of
            another dtype it is converted to the residual's.

    Returns:
        The residual's shape and dtype, contiguous. Moves 3 activations forward and 3 backward, where the residual's
        gradient is y's own; saved for the backward are branch and gate.

    Raises:
        TypeError: the residual is not floating point.
        ValueError: the branch or the gate has the wrong shape or device.

    Source: Peebles and Xie 2023, "Scalable Diffusion Models with Transformers", section 3.2 (adaLN-Zero).
    """
    check_tokens(_OP, "residual", residual)
    branch = like_tokens(_OP, "branch", branch, residual)
    vector = modulation(_OP, "gate", gate, residual)
    backend = _dispatch.choose(_OP, PREDICATES, residual)
    if backend == "reference":
        return _dispatch.call_reference(reference.gated_residual, residual, branch, gate)
    return _dispatch.apply(_GatedResidual, residual.contiguous(), branch.contiguous(), vector, backend)
