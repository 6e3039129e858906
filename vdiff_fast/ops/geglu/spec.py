"""What the generic tests and benchmarks know of geglu."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from vdiff_fast._spec import AotCase, BenchCase, Invalid, OpSpec, Sample, randn
from vdiff_fast.ops._common.cases import biased_rows_aot
from vdiff_fast.ops._common.cases.layers import TOKEN_LAYERS, TokenLayer
from vdiff_fast.ops.geglu import api, reference


def samples(device: torch.device, dtype: torch.dtype) -> Iterator[Sample]:
    for shape in [(3, 5, 64), (7, 2), (2, 1300), (2, 4, 3, 34)]:
        yield Sample("x".join(map(str, shape)), (randn(shape, device, dtype),))
    for shape in [(3, 50, 72), (1, 1300), (200, 6)]:
        bias = randn(shape[-1:], device, dtype, seed=1)
        yield Sample("bias-" + "x".join(map(str, shape)), (randn(shape, device, dtype), bias))
    far = torch.linspace(-30, 30, 604, dtype=torch.float64).reshape(2, 302).to(device, dtype)
    yield Sample("tails", (far.requires_grad_(),))
    yield Sample("empty", (randn((0, 8), device, dtype),))
    yield Sample("strided", (randn((6, 5), device, dtype, grad=False).t().requires_grad_(),))


def invalid() -> Iterator[Invalid]:
    yield Invalid("odd", lambda: api.geglu(torch.zeros(2, 5)), ValueError, r"split in halves, but x has shape \(2, 5\)")
    yield Invalid(
        "bias", lambda: api.geglu(torch.zeros(2, 4), torch.ones(2)), ValueError, r"bias must have shape \(4,\)"
    )
    yield Invalid("integer", lambda: api.geglu(torch.zeros(2, 4, dtype=torch.int64)), TypeError, "torch.int64")


def aot() -> Iterator[AotCase]:
    return biased_rows_aot.cases("geglu")


def bench() -> Iterator[BenchCase]:
    """The hidden layer of a gated MLP of ratio 4: x of 8 widths read and 4 written; with dy read and dx written."""
    for layer in TOKEN_LAYERS:

        def sample(device: torch.device, dtype: torch.dtype, layer: TokenLayer = layer) -> Sample:
            shape = (*layer.shape[:-1], 8 * layer.shape[-1])
            return Sample(layer.name, (randn(shape, device, dtype), randn(shape[-1:], device, dtype, seed=1)))

        elements = 4 * torch.Size(layer.shape).numel()
        yield BenchCase(
            name=layer.name,
            sample=sample,
            bytes_forward=3 * 4 * elements,
            bytes_backward=5 * 4 * elements,
            tags=("gpu",) if layer.gpu else (),
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
    error_multiple=2.0,
    error_reason="in float32 both are a roundoff or two off, so their ratio scatters; its mean over the samples is < 1",
    bench=bench,
    summary="a * GELU(g), the transformer's gated feed-forward",
)
