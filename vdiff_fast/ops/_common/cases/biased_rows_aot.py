"""Triton kernels of activations with a bias to compile ahead of time: both tiles, with the bias and its gradient."""

from __future__ import annotations

from collections.abc import Iterator

from vdiff_fast._spec import AotCase
from vdiff_fast.ops._common.biased_rows_config import tile_config

_POINTERS = {
    "forward_kernel": ("x_ptr", "bias_ptr", "y_ptr"),
    "backward_kernel": ("dy_ptr", "x_ptr", "bias_ptr", "dx_ptr", "partial_ptr"),
}


def cases(op: str) -> Iterator[AotCase]:
    for width in (320, 3072):
        config = tile_config(width)
        for kernel, pointers in _POINTERS.items():
            sizes = ("width", "tiles") if kernel == "forward_kernel" else ("rows", "width", "tiles", "walk")
            types = {p: "*fp32" if p in ("bias_ptr", "partial_ptr") else "*bf16" for p in pointers}
            yield AotCase(
                name=f"{op}_{kernel}_{width}",
                kernel=kernel,
                signature=types | dict.fromkeys(sizes, "i32"),
                constants={"HAS_BIAS": True, "BLOCK": config.block},
                divisible=(*pointers, "width"),
                num_warps=config.num_warps,
            )
