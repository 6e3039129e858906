"""What the generic tests and benchmarks know of geglu."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from vdiff_fast._spec import AotCase, Invalid, OpSpec, Sample, randn
from vdiff_fast.ops.geglu import api, reference
from vdiff_fast.ops.geglu.config import tile_config


def samples(device: torch.device, dtype: torch.dtype) -> Iterator[Sample]:
    for shape in [(3, 5, 64), (7, 2), (2, 1300), (2, 4, 3, 34)]:
        yield Sample("x".join(map(str, shape)), (randn(shape, device, dtype),))
    yield Sample("empty", (randn((0, 8), device, dtype),))
    yield Sample("strided", (randn((6, 5), device, dtype, grad=False).t().requires_grad_(),))


def invalid() -> Iterator[Invalid]:
    yield Invalid("odd", lambda: api.geglu(torch.zeros(2, 5)), ValueError, r"split in halves, but x has shape \(2, 5\)")
    yield Invalid("integer", lambda: api.geglu(torch.zeros(2, 4, dtype=torch.int64)), TypeError, "torch.int64")


def aot() -> Iterator[AotCase]:
    for width in (320, 3072):
        config = tile_config(width)
        sizes = {"width": "i32", "tiles": "i32"}
        constants = {"BLOCK": config.block}
        for kernel, pointers in (
            ("forward_kernel", ("x_ptr", "y_ptr")),
            ("backward_kernel", ("dy_ptr", "x_ptr", "dx_ptr")),
        ):
            yield AotCase(
                name=f"geglu_{kernel}_{width}",
                kernel=kernel,
                signature=dict.fromkeys(pointers, "*bf16") | sizes,
                constants=constants,
                divisible=(*pointers, "width"),
                num_warps=config.num_warps,
            )


SPEC = OpSpec(
    name="geglu",
    module=__package__,
    function=api.geglu,
    reference=reference.geglu,
    samples=samples,
    predicates=api.PREDICATES,
    invalid=invalid,
    aot=aot,
    summary="a * GELU(g), the transformer's gated feed-forward",
)
