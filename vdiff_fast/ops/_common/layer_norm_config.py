"""Launch parameters of the kernels that normalise and modulate rows, shared by the adaLN ops."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from vdiff_fast import _dispatch

# A row is held in the registers of one block.
WIDEST = 8192


@dataclass(frozen=True)
class RowConfig:
    """How a row is held.

    Attributes:
        head, tail: widths of the row's two pieces, powers of two; tail is 0 where one piece holds it.
        exact: the pieces have the row's width together, so that no access needs a mask.
        rows: how many a program of the backward sums over.
    """

    head: int
    tail: int
    exact: bool
    num_warps: int
    rows: int = 1

    @property
    def pieces(self) -> dict[str, int | bool]:
        """The kernels' constants."""
        return {"HEAD": self.head, "TAIL": self.tail, "EXACT": self.exact}


# Elements of a row that a thread holds, by bytes of an element: without a spill for sm_80, sm_90 and sm_100. A row in
# one warp needs no shared memory for its sums; the backward holds two or three sums of every column too. Not measured
# on a GPU yet.
FORWARD_ELEMENTS, BACKWARD_ELEMENTS = {2: 64, 4: 32}, {2: 24, 4: 8}


def row_config(width: int, rows: int, length: int, element_bytes: int, *, backward: bool) -> RowConfig:
    """
    Args:
        rows: of the whole call.
        length: of a run of rows that share their vectors.
    """
    head = max(16, 1 << (width.bit_length() - 1))
    rest = width - head
    tail = 0 if rest <= 0 else max(16, 1 << (rest - 1).bit_length())
    if tail == head:
        head, tail = 2 * head, 0
    elements = (BACKWARD_ELEMENTS if backward else FORWARD_ELEMENTS)[element_bytes]
    warps = 1
    while warps < 16 and (head + tail) > 32 * warps * elements:
        warps *= 2
    # Programs of a backward pass: longer walks mean fewer partial sums to write, but a wave wants every SM.
    walk = max(1, min(16, rows // 1024)) if backward else 1
    return RowConfig(head, tail, head + tail == width, warps, min(walk, length) if length > 1 else walk)


def _why_not_wide(x: Tensor) -> str | None:
    return None if x.shape[-1] <= WIDEST else f"a row of {x.shape[-1]} is wider than the {WIDEST} it holds"


def why_not_triton(x: Tensor, *facts: object) -> str | None:
    """Triton kernels hold a row in registers."""
    return _dispatch.why_not_triton(x) or _why_not_wide(x)


def why_not_cuda(x: Tensor, *facts: object) -> str | None:
    """CUDA kernels hold a row in registers."""
    return _dispatch.why_not_cuda(x) or _why_not_wide(x)
