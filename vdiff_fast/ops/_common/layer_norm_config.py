"""Launch parameters of the kernels that normalise and modulate rows, shared by the adaLN ops."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from vdiff_fast import _dispatch

# A row is held in the registers of one block.
WIDEST = 8192


@dataclass(frozen=True)
class RowConfig:
    """`block`: a row's width, rounded up to a power of two; `rows`: how many a program of the backward sums over."""

    block: int
    num_warps: int
    rows: int = 1


def row_config(width: int, rows: int, length: int, *, backward: bool) -> RowConfig:
    """16 elements a thread, 8 in the backward, which holds sums too. Not measured on a GPU yet."""
    block = max(16, 1 << (width - 1).bit_length())
    warps = min(16, max(1, block // (256 if backward else 512)))
    # Programs of a backward pass: longer walks mean fewer partial sums to write, but a wave wants every SM.
    walk = max(1, min(16, rows // 1024)) if backward else 1
    return RowConfig(block, warps, min(walk, length) if length > 1 else walk)


def _why_not_wide(x: Tensor) -> str | None:
    return None if x.shape[-1] <= WIDEST else f"a row of {x.shape[-1]} is wider than the {WIDEST} it holds"


def why_not_triton(x: Tensor, *facts: object) -> str | None:
    """Triton kernels hold a row in registers."""
    return _dispatch.why_not_triton(x) or _why_not_wide(x)


def why_not_cuda(x: Tensor, *facts: object) -> str | None:
    """CUDA kernels hold a row in registers."""
    return _dispatch.why_not_cuda(x) or _why_not_wide(x)
