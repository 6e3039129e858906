"""What the generic tests and benchmarks know of gated_residual_norm_modulate."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from vdiff_fast._spec import AotCase, BenchCase, Invalid, OpSpec, Sample, randn
from vdiff_fast.ops._common.cases import layer_norm_aot
from vdiff_fast.ops._common.cases.layers import TOKEN_LAYERS, TokenLayer
from vdiff_fast.ops.gated_residual_norm_modulate import api, reference


def _sample(
    name: str,
    device: torch.device,
    dtype: torch.dtype,
    shape: Sequence[int],
    vectors: Sequence[int] = (),
    gate_vectors: Sequence[int] | None = None,
    eps: float = 1e-6,
) -> Sample:
    batch, width = shape[0], shape[-1]
    gate_middle = vectors if gate_vectors is None else gate_vectors
    activations = (randn(shape, device, dtype), randn(shape, device, dtype, seed=1))
    gate = randn((batch, *gate_middle, width), device, dtype, seed=2)
    shift, scale = (randn((batch, *vectors, width), device, dtype, seed=i) for i in (3, 4))
    return Sample(name, (*activations, gate, shift, scale), {"eps": eps})


def samples(device: torch.device, dtype: torch.dtype) -> Iterator[Sample]:
    yield _sample("sample", device, dtype, (2, 9, 72))
    yield _sample("frame", device, dtype, (2, 3, 5, 40), (3,))
    yield _sample("frame_of_the_residual's_rank", device, dtype, (1, 3, 4, 24), (3, 1), (1, 1))
    yield _sample("runs", device, dtype, (2, 12, 33), (2,), (4,))
    yield _sample("token", device, dtype, (2, 2, 3, 64), (2, 3), (), eps=1e-3)
    yield _sample("many", device, dtype, (2, 70, 48))
    yield _sample("no_tokens_axis", device, dtype, (3, 16))
    yield _sample("size_one", device, dtype, (1, 1, 1, 8))
    yield _sample("wide", device, dtype, (1, 3, 1500))
    yield _sample("empty_batch", device, dtype, (0, 4, 8))
    yield _sample("no_tokens", device, dtype, (2, 0, 8))
    transposed = randn((2, 6, 5, 16), device, dtype, grad=False).transpose(1, 2).requires_grad_()
    yield Sample("strided", (transposed, *_sample("", device, dtype, (2, 5, 6, 16)).args[1:]))


def invalid() -> Iterator[Invalid]:
    x, vector = torch.zeros(2, 3, 4, 8), torch.zeros(2, 8)
    op = api.gated_residual_norm_modulate
    yield Invalid("integer", lambda: op(x.long(), x, *[vector] * 3), TypeError, "residual must be floating point")
    yield Invalid("rank", lambda: op(x[0, 0, 0], x, *[vector] * 3), ValueError, r"residual must be \(B, ..., D\)")
    yield Invalid(
        "branch", lambda: op(x, x[:1], *[vector] * 3), ValueError,
        r"branch must have the residual's shape \(2, 3, 4, 8\), got \(1, 3, 4, 8\)",
    )  # fmt: skip
    yield Invalid(
        "gate", lambda: op(x, x, torch.zeros(2, 5, 8), vector, vector), ValueError,
        r"gate must have shape \(2, 8\), or \(2, F, 8\) with F a divisor of the 12 tokens",
    )  # fmt: skip


def bench() -> Iterator[BenchCase]:
    """The minimum is residual and branch read, h and y written; backward dy, dh, h, branch read, two written."""
    for layer in TOKEN_LAYERS:

        def sample(device: torch.device, dtype: torch.dtype, layer: TokenLayer = layer) -> Sample:
            return _sample(layer.name, device, dtype, layer.shape, (layer.vectors,))

        elements = torch.Size(layer.shape).numel()
        yield BenchCase(
            name=layer.name,
            sample=sample,
            bytes_forward=4 * 4 * elements,
            bytes_backward=6 * 4 * elements,
            tags=("gpu",) if layer.gpu else (),
        )


def aot() -> Iterator[AotCase]:
    return layer_norm_aot.cases("gated_residual_norm_modulate", gated=True)


SPEC = OpSpec(
    name="gated_residual_norm_modulate",
    module=__package__,
    function=api.gated_residual_norm_modulate,
    reference=reference.gated_residual_norm_modulate,
    samples=samples,
    predicates=api.PREDICATES,
    invalid=invalid,
    bench=bench,
    aot=aot,
    error_multiple=2.0,
    error_reason="in float32 both are a roundoff or two off, so their ratio scatters; its mean over the samples is < 1",
    summary="residual + gate * branch, then LayerNorm, scale and shift (adaLN-Zero) in one pass",
)
