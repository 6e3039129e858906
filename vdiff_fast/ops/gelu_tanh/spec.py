"""What the generic tests and benchmarks know of gelu_tanh."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from vdiff_fast._spec import AotCase, BenchCase, Invalid, OpSpec, Sample, randn
from vdiff_fast.ops._common.cases import biased_rows_aot
from vdiff_fast.ops._common.cases.layers import TOKEN_LAYERS, TokenLayer
from vdiff_fast.ops.gelu_tanh import api, reference


def samples(device: torch.device, dtype: torch.dtype) -> Iterator[Sample]:
    for shape in [(3, 5, 64), (7, 1), (2, 1300), (2, 4, 3, 34), (5,)]:
        yield Sample("x".join(map(str, shape)), (randn(shape, device, dtype),))
    for shape in [(3, 50, 72), (1, 1300), (200, 5)]:
        bias = randn(shape[-1:], device, dtype, seed=1)
        yield Sample("bias-" + "x".join(map(str, shape)), (randn(shape, device, dtype), bias))
    bias = randn((24,), device, torch.promote_types(dtype, torch.float32), seed=1)
    yield Sample("bias_float32", (randn((2, 7, 24), device, dtype), bias))
    far = torch.linspace(-30, 30, 602, dtype=torch.float64).reshape(2, 301).to(device, dtype)
    yield Sample("tails", (far.requires_grad_(),))
    yield Sample("empty", (randn((0, 8), device, dtype), randn((8,), device, dtype, seed=1)))
    yield Sample("strided", (randn((6, 5), device, dtype, grad=False).t().requires_grad_(),))


def invalid() -> Iterator[Invalid]:
    x = torch.zeros(2, 4)
    yield Invalid("integer", lambda: api.gelu_tanh(x.long()), TypeError, "x must be floating point, got torch.int64")
    yield Invalid("scalar", lambda: api.gelu_tanh(x[0, 0]), ValueError, r"x must be \(..., D\), got shape \(\)")
    yield Invalid("bias", lambda: api.gelu_tanh(x, torch.ones(3)), ValueError, r"bias must have shape \(4,\)")


def bench() -> Iterator[BenchCase]:
    """The hidden layer of an MLP of ratio 4; the minimum is x read and y written, and with dy read and dx written."""
    for layer in TOKEN_LAYERS:

        def sample(device: torch.device, dtype: torch.dtype, layer: TokenLayer = layer) -> Sample:
            shape = (*layer.shape[:-1], 4 * layer.shape[-1])
            return Sample(layer.name, (randn(shape, device, dtype), randn(shape[-1:], device, dtype, seed=1)))

        elements = 4 * torch.Size(layer.shape).numel()
        yield BenchCase(
            name=layer.name,
            sample=sample,
            bytes_forward=2 * 4 * elements,
            bytes_backward=3 * 4 * elements,
            tags=("gpu",) if layer.gpu else (),
        )


def aot() -> Iterator[AotCase]:
    return biased_rows_aot.cases("gelu_tanh")


SPEC = OpSpec(
    name="gelu_tanh",
    module=__package__,
    function=api.gelu_tanh,
    reference=reference.gelu_tanh,
    samples=samples,
    predicates=api.PREDICATES,
    invalid=invalid,
    bench=bench,
    aot=aot,
    error_multiple=2.0,
    error_reason="in float32 both are a roundoff or two off, so their ratio scatters; its mean over the samples is < 1",
    summary="bias and GELU (tanh) of a transformer's MLP in one pass",
)
