"""What the generic tests and benchmarks know of gated_residual."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from vdiff_fast._spec import AotCase, BenchCase, Invalid, OpSpec, Sample, randn
from vdiff_fast.ops._common.cases.layers import TOKEN_LAYERS, TokenLayer
from vdiff_fast.ops.gated_residual import api, reference
from vdiff_fast.ops.gated_residual.config import tile_config


def _sample(
    name: str, device: torch.device, dtype: torch.dtype, shape: Sequence[int], vectors: Sequence[int] = ()
) -> Sample:
    gate = randn((shape[0], *vectors, shape[-1]), device, dtype, seed=2)
    return Sample(name, (randn(shape, device, dtype), randn(shape, device, dtype, seed=1), gate))


def samples(device: torch.device, dtype: torch.dtype) -> Iterator[Sample]:
    yield _sample("sample", device, dtype, (2, 70, 72))
    yield _sample("frame", device, dtype, (2, 3, 5, 40), (3,))
    yield _sample("token", device, dtype, (2, 2, 3, 33), (2, 3))
    yield _sample("no_tokens_axis", device, dtype, (3, 16))
    yield _sample("size_one", device, dtype, (1, 1, 1, 8))
    yield _sample("wide", device, dtype, (1, 3, 1500))
    yield _sample("empty_batch", device, dtype, (0, 4, 8))
    yield _sample("no_tokens", device, dtype, (2, 0, 8))
    transposed = randn((2, 6, 5, 16), device, dtype, grad=False).transpose(1, 2).requires_grad_()
    yield Sample("strided", (transposed, *_sample("", device, dtype, (2, 5, 6, 16)).args[1:]))


def invalid() -> Iterator[Invalid]:
    x, vector = torch.zeros(2, 12, 8), torch.zeros(2, 8)
    op = api.gated_residual
    yield Invalid("integer", lambda: op(x.long(), x, vector), TypeError, "residual must be floating point")
    yield Invalid("branch", lambda: op(x, x[:, :3], vector), ValueError, r"branch must have .*got \(2, 3, 8\)")
    yield Invalid("gate", lambda: op(x, x, torch.zeros(2, 5, 8)), ValueError, r"gate must have .*got \(2, 5, 8\)")


def bench() -> Iterator[BenchCase]:
    """The minimum is residual and branch read, y written; backward dy and branch read, dbranch written."""
    for layer in TOKEN_LAYERS:

        def sample(device: torch.device, dtype: torch.dtype, layer: TokenLayer = layer) -> Sample:
            return _sample(layer.name, device, dtype, layer.shape, (layer.vectors,))

        elements = torch.Size(layer.shape).numel()
        yield BenchCase(
            name=layer.name,
            sample=sample,
            bytes_forward=3 * 4 * elements,
            bytes_backward=3 * 4 * elements,
            tags=("gpu",) if layer.gpu else (),
        )


def aot() -> Iterator[AotCase]:
    forward = ("residual_ptr", "branch_ptr", "gate_ptr", "y_ptr")
    backward = ("dy_ptr", "branch_ptr", "gate_ptr", "dbranch_ptr", "partial_ptr")
    kernels: dict[str, tuple[str, ...]] = {"forward_kernel": forward, "backward_kernel": backward}
    for width in (192, 1152):
        config = tile_config(width, 4096, 256)
        for kernel, pointers in kernels.items():
            sizes = ["width", "length", "per_sample", "gate_sample", "gate_run", "tiles"]
            sizes += ["chunks", "walk"] if kernel == "backward_kernel" else []
            types = {p: "*fp32" if p == "partial_ptr" else "*bf16" for p in pointers}
            yield AotCase(
                name=f"gated_residual_{kernel}_{width}",
                kernel=kernel,
                signature=types | dict.fromkeys(sizes, "i32"),
                constants={"BLOCK": config.block},
                divisible=(*pointers, "width", "gate_sample", "gate_run"),
                num_warps=config.num_warps,
            )


SPEC = OpSpec(
    name="gated_residual",
    module=__package__,
    function=api.gated_residual,
    reference=reference.gated_residual,
    samples=samples,
    predicates=api.PREDICATES,
    invalid=invalid,
    bench=bench,
    aot=aot,
    error_multiple=2.0,
    error_reason="in float32 both are a roundoff or two off, so their ratio scatters; its mean over the samples is < 1",
    summary="residual + gate * branch, the end of an adaLN-Zero branch",
)
