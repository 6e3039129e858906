"""A row of any width as two pieces whose widths are powers of two, as Triton's tensors are: 1152 = 1024 + 128.

Rounded up to one power of two a row of 1152 would be computed as one of 2048. Functions return the row's two pieces in
float32. Where TAIL is 0 the second is the first again, and the compiler drops what is computed of it.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def load_row(ptr, at, width, HEAD: tl.constexpr, TAIL: tl.constexpr, EXACT: tl.constexpr):
    """Columns of the row that begins at ptr + at. EXACT: the pieces have `width` columns together."""
    column = tl.arange(0, HEAD)
    if EXACT or TAIL > 0:
        head = tl.load(ptr + at + column).to(tl.float32)
    else:
        head = tl.load(ptr + at + column, mask=column < width, other=0.0).to(tl.float32)
    tail = head
    if TAIL > 0:
        column = HEAD + tl.arange(0, TAIL)
        if EXACT:
            tail = tl.load(ptr + at + column).to(tl.float32)
        else:
            tail = tl.load(ptr + at + column, mask=column < width, other=0.0).to(tl.float32)
    return head, tail


@triton.jit
def store_row(ptr, at, head, tail, width, HEAD: tl.constexpr, TAIL: tl.constexpr, EXACT: tl.constexpr):
    column = tl.arange(0, HEAD)
    if EXACT or TAIL > 0:
        tl.store(ptr + at + column, head.to(ptr.dtype.element_ty))
    else:
        tl.store(ptr + at + column, head.to(ptr.dtype.element_ty), mask=column < width)
    if TAIL > 0:
        column = HEAD + tl.arange(0, TAIL)
        if EXACT:
            tl.store(ptr + at + column, tail.to(ptr.dtype.element_ty))
        else:
            tl.store(ptr + at + column, tail.to(ptr.dtype.element_ty), mask=column < width)


@triton.jit
def zero_outside(head, tail, width, HEAD: tl.constexpr, TAIL: tl.constexpr, EXACT: tl.constexpr):
    """The pieces with zeros in the columns that the row does not have."""
    if not EXACT:
        if TAIL > 0:
            tail = tl.where(HEAD + tl.arange(0, TAIL) < width, tail, 0.0)
        else:
            head = tl.where(tl.arange(0, HEAD) < width, head, 0.0)
            tail = head
    return head, tail


@triton.jit
def row_sum(head, tail, TAIL: tl.constexpr):
    total = tl.sum(head, 0)
    if TAIL > 0:
        total += tl.sum(tail, 0)
    return total
