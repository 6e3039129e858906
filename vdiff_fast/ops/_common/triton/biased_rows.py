"""Launches of kernels over rows of x + bias: a program takes a tile of a row, in the backward of the rows whose dbias
it sums."""

from __future__ import annotations

from typing import Any

import torch
import triton
from torch import Tensor

from vdiff_fast.ops._common.biased_rows_config import tile_config


def launch_forward(kernel: Any, x: Tensor, bias: Tensor | None, y: Tensor) -> Tensor:
    """Fills y, whose rows may be narrower than x's."""
    if y.numel():
        width = y.shape[-1]
        config = tile_config(width)
        tiles = triton.cdiv(width, config.block)
        kernel[(y.numel() // width * tiles,)](
            x, x if bias is None else bias, y, width, tiles,
            HAS_BIAS=bias is not None, BLOCK=config.block, num_warps=config.num_warps,
        )  # fmt: skip
    return y


def launch_backward(
    kernel: Any, dy: Tensor, x: Tensor, bias: Tensor | None, dx: Tensor, dbias: Tensor
) -> tuple[Tensor, Tensor]:
    """Fills dx, and sums dbias over its rows; a row of the output is as wide as dy's."""
    if dx.numel() == 0:
        return dx, dbias.zero_()
    width = dy.shape[-1]
    rows = dy.numel() // width
    config = tile_config(width, rows)
    tiles, chunks = triton.cdiv(width, config.block), triton.cdiv(rows, config.rows)
    partial = dx if bias is None else bias.new_empty((chunks, x.shape[-1]))
    kernel[(chunks * tiles,)](
        dy, x, x if bias is None else bias, dx, partial, rows, width, tiles, config.rows,
        HAS_BIAS=bias is not None, BLOCK=config.block, num_warps=config.num_warps,
    )  # fmt: skip
    return dx, dbias if bias is None else partial.sum(0, dtype=torch.float64).to(bias.dtype)
