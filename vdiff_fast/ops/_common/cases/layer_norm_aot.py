"""Triton kernels of the adaLN ops to compile ahead of time: every width class, all options on."""

from __future__ import annotations

from collections.abc import Iterator

from vdiff_fast._spec import AotCase
from vdiff_fast.ops._common.layer_norm_config import row_config

WIDTHS = (64, 200, 1152, 3072, 5120, 8192)
_FORWARD = ("residual", "branch", "gate", "shift", "scale", "weight", "bias", "h", "y", "statistics")
_BACKWARD = (
    "dy", "dh", "h", "branch", "gate", "scale", "weight", "bias", "statistics", "dx", "dbranch", "dgate", "dshift",
    "dscale", "partial",
)  # fmt: skip
_WIDE = ("weight_ptr", "bias_ptr", "statistics_ptr", "partial_ptr")
_SIZES = ("rows", "width", "length", "per_sample", "gate_sample", "gate_run", "scale_sample", "scale_run")


def _case(op: str, kernel: str, width: int, dtype: str, gated: bool, per_token: bool) -> AotCase:
    backward = kernel == "backward_kernel"
    pointers = tuple(f"{name}_ptr" for name in (_BACKWARD if backward else _FORWARD))
    config = row_config(width, 16384, 256, 4 if dtype == "fp32" else 2, backward=backward)
    types = dict.fromkeys(pointers, f"*{dtype}") | {p: "*fp32" for p in _WIDE if p in pointers}
    extra = {"chunks": "i32", "walk": "i32"} if backward else {"shift_sample": "i32", "shift_run": "i32", "eps": "fp32"}
    options = {"HAS_DH": gated, "PER_TOKEN": per_token} if backward else {}
    affine = not gated
    return AotCase(
        name=f"{op}_{kernel}_{width}{'_per_token' if per_token else ''}_{dtype}",
        kernel=kernel,
        signature=types | dict.fromkeys(_SIZES, "i32") | extra,
        constants=options | {"GATED": gated, "HAS_WEIGHT": affine, "HAS_BIAS": affine} | config.pieces,
        divisible=(*pointers, "width", *(s for s in (*_SIZES, *extra) if s.endswith(("_sample", "_run")))),
        num_warps=config.num_warps,
        # In float32 wide rows have 10 to 16 elements of six activations a thread, in as many warps as a block has; in
        # 16 bits ptxas keeps a pair or two on the stack before it has used all registers.
        max_spills=(192 if dtype == "fp32" and width >= 5120 else 16) if backward else 0,
    )


def cases(op: str, *, gated: bool) -> Iterator[AotCase]:
    for width in WIDTHS:
        for dtype in ("bf16", "fp32"):
            yield _case(op, "forward_kernel", width, dtype, gated, False)
            yield _case(op, "backward_kernel", width, dtype, gated, False)
        yield _case(op, "backward_kernel", width, "bf16", gated, True)
