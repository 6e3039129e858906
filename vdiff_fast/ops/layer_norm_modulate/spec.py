"""What the generic tests and benchmarks know of layer_norm_modulate."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch

from vdiff_fast._spec import AotCase, BenchCase, Invalid, OpSpec, Sample, randn
from vdiff_fast.ops._common.cases import layer_norm_aot
from vdiff_fast.ops._common.cases.layers import TOKEN_LAYERS, TokenLayer
from vdiff_fast.ops.layer_norm_modulate import api, reference


def samples(device: torch.device, dtype: torch.dtype) -> Iterator[Sample]:
    def make(
        name: str,
        shape: Sequence[int],
        vectors: Sequence[int] = (),
        scale_vectors: Sequence[int] | None = None,
        affine_dtype: torch.dtype | None = None,
        eps: float = 1e-6,
    ) -> Sample:
        batch, width = shape[0], shape[-1]
        middle = vectors if scale_vectors is None else scale_vectors
        shift = randn((batch, *vectors, width), device, dtype, seed=1)
        scale = randn((batch, *middle, width), device, dtype, seed=2)
        kwargs: dict[str, object] = {"eps": eps}
        if affine_dtype is not None:
            kwargs["weight"] = randn((width,), device, affine_dtype, seed=3)
            kwargs["bias"] = randn((width,), device, affine_dtype, seed=4)
        return Sample(name, (randn(shape, device, dtype), shift, scale), kwargs)

    yield make("sample", (2, 9, 72))
    yield make("frame", (2, 3, 5, 40), (3,))
    yield make("frame_of_x's_rank", (1, 3, 4, 24), (3, 1), (1, 1))
    yield make("runs", (2, 12, 33), (4,), (2,))
    yield make("token", (2, 2, 3, 64), (2, 3), ())
    yield make("affine", (2, 70, 48), affine_dtype=dtype)
    yield make("affine_token", (2, 7, 20), (7,), affine_dtype=dtype, eps=1e-3)
    yield make("affine_float32", (1, 4, 6, 36), (4,), affine_dtype=torch.promote_types(dtype, torch.float32))
    for name in ("weight", "bias"):
        alone = make(f"{name}_alone", (2, 5, 12), affine_dtype=dtype)
        yield replace(alone, kwargs={"eps": 1e-6, name: alone.kwargs[name]})
    yield make("no_tokens_axis", (3, 16))
    yield make("size_one", (1, 1, 1, 8))
    yield make("wide", (1, 3, 1500))
    yield make("empty_batch", (0, 4, 8))
    yield make("no_tokens", (2, 0, 8))
    transposed = randn((2, 6, 5, 16), device, dtype, grad=False).transpose(1, 2).requires_grad_()
    yield Sample("strided", (transposed, *make("", (2, 5, 6, 16)).args[1:]))


def invalid() -> Iterator[Invalid]:
    x, vector = torch.zeros(2, 3, 4, 8), torch.zeros(2, 8)
    op = api.layer_norm_modulate
    yield Invalid("integer", lambda: op(x.long(), vector, vector), TypeError, "x must be floating point.*int64")
    yield Invalid("rank", lambda: op(x[0, 0, 0], vector, vector), ValueError, r"x must be \(B, ..., D\).*\(8,\)")
    yield Invalid("width", lambda: op(x, vector, torch.zeros(2, 7)), ValueError, r"scale must have .*got \(2, 7\)")
    yield Invalid(
        "runs", lambda: op(x, torch.zeros(2, 5, 8), vector), ValueError,
        r"shift must have shape \(2, 8\), or \(2, F, 8\) with F a divisor of the 12 tokens.*got \(2, 5, 8\)",
    )  # fmt: skip
    yield Invalid(
        "second_axis_alone", lambda: op(x, torch.zeros(2, 1, 4, 8), vector), ValueError, r"got \(2, 1, 4, 8\)"
    )
    yield Invalid("integer_vector", lambda: op(x, vector.int(), vector), TypeError, "shift must be floating point")
    yield Invalid("weight", lambda: op(x, vector, vector, weight=torch.ones(7)), ValueError, r"weight must have shape")
    yield Invalid("device", lambda: op(x, vector.to("meta"), vector), ValueError, "shift is on meta, x on cpu")


def bench() -> Iterator[BenchCase]:
    """The minimum is x read and y written, and with dy read and dx written."""
    for layer in TOKEN_LAYERS:

        def sample(device: torch.device, dtype: torch.dtype, layer: TokenLayer = layer) -> Sample:
            vectors = (layer.shape[0], layer.vectors, layer.shape[-1])
            return Sample(
                layer.name,
                (randn(layer.shape, device, dtype), *(randn(vectors, device, dtype, seed=i) for i in (1, 2))),
            )

        elements = torch.Size(layer.shape).numel()
        yield BenchCase(
            name=layer.name,
            sample=sample,
            bytes_forward=2 * 4 * elements,
            bytes_backward=3 * 4 * elements,
            tags=("gpu",) if layer.gpu else (),
        )


def aot() -> Iterator[AotCase]:
    return layer_norm_aot.cases("layer_norm_modulate", gated=False)


SPEC = OpSpec(
    name="layer_norm_modulate",
    module=__package__,
    function=api.layer_norm_modulate,
    reference=reference.layer_norm_modulate,
    samples=samples,
    predicates=api.PREDICATES,
    invalid=invalid,
    bench=bench,
    aot=aot,
    error_multiple=2.0,
    error_reason="in float32 both are a roundoff or two off, so their ratio scatters; its mean over the samples is < 1",
    summary="LayerNorm, scale and shift per sample, frame or token (adaLN) in one pass",
)
