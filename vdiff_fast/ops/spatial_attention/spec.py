"""What the generic tests and benchmarks know of spatial_attention."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from vdiff_fast._spec import BenchCase, Invalid, OpSpec, Sample, randn
from vdiff_fast.ops._common.cases.attention_peers import attention_peers
from vdiff_fast.ops._common.cases.layers import ATTENTION_LAYERS, AttentionLayer
from vdiff_fast.ops.qk_norm_rope import rope_tables
from vdiff_fast.ops.spatial_attention import api, reference


def function(x: Tensor, *others: Tensor, **options: Any) -> Tensor:
    return (api.spatial_attention if others else api.spatial_attention_qkv)(x, *others, **options)


function.__doc__ = api.spatial_attention.__doc__


def reference_function(x: Tensor, *others: Tensor, **options: Any) -> Tensor:
    return (reference.spatial_attention if others else reference.spatial_attention_qkv)(x, *others, **options)


def _options(positions: int, d: int, device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    weights = (1 + 0.3 * randn((d,), device, dtype, seed=i, grad=False) for i in (5, 6))
    return {
        "qk_norm": tuple(w.detach().requires_grad_() for w in weights),
        "rope": tuple(t.to(device=device, dtype=dtype) for t in rope_tables(positions, d)),
        "scale": 0.7 * d**-0.5,
    }


def samples(device: torch.device, dtype: torch.dtype) -> Iterator[Sample]:
    for shape in [(1, 2, 16, 2, 8), (2, 3, 37, 1, 40), (1, 1, 3, 2, 16)]:
        q, k, v = (randn(shape, device, dtype, seed=i) for i in range(3))
        yield Sample("x".join(map(str, shape)), (q, k, v))
    q = randn((2, 1, 20, 2, 16), device, dtype)
    k, v = (randn((2, 1, 7, 2, 16), device, dtype, seed=i) for i in (1, 2))
    yield Sample("cross", (q, k, v))
    yield Sample("packed", (randn((1, 2, 12, 3, 2, 24), device, dtype),))
    yield Sample("options", (randn((2, 2, 12, 3, 2, 24), device, dtype),), _options(12, 24, device, dtype))
    yield Sample("empty", tuple(randn((0, 2, 4, 2, 8), device, dtype) for _ in range(3)))


def invalid() -> Iterator[Invalid]:
    x = torch.zeros(1, 2, 4, 2, 8)
    call = api.spatial_attention
    yield Invalid("heads", lambda: call(x, x[..., :1, :], x[..., :1, :]), ValueError, "k has 1 heads, q has 2")
    yield Invalid("frames", lambda: call(x, x[:, :1], x[:, :1]), ValueError, "may differ in their third axis alone")
    yield Invalid("kv", lambda: call(x, x[:, :, :3], x), ValueError, "k has shape")
    odd = torch.zeros(1, 4, 3, 2, 136)
    yield Invalid("head-dim", lambda: call(odd, odd, odd), ValueError, "head dim 136 of q must be a multiple of 8")
    yield Invalid("integer", lambda: call(x.long(), x, x), TypeError, "q must be floating point, got torch.int64")
    yield Invalid("tables", lambda: call(x, x, x, rope=rope_tables(3, 8)), ValueError, r"= \(4, 4\), got \(3, 4\)")
    packed = api.spatial_attention_qkv
    yield Invalid("packed", lambda: packed(x), ValueError, r"qkv must be \(B, T, S, 3, heads, d\)")


# Logits of this many elements, which the reference holds, are no measurement any more on two cores.
MAX_CPU_LOGITS = 2**24


def bench() -> Iterator[BenchCase]:
    """Queries, keys and values apart, as `qkv_linear` gives them; the time is in products, not in bytes."""
    for layer in ATTENTION_LAYERS:

        def sample(device: torch.device, dtype: torch.dtype, layer: AttentionLayer = layer) -> Sample:
            return Sample(layer.name, tuple(randn(layer.shape, device, dtype, seed=i) for i in range(3)))

        logits = layer.batch * layer.frames * layer.heads * layer.positions**2
        yield BenchCase(
            name=layer.name,
            sample=sample,
            bytes_forward=4 * 4 * layer.elements,
            bytes_backward=7 * 4 * layer.elements,
            tags=("gpu",) if layer.gpu or logits > MAX_CPU_LOGITS else (),
        )


SPEC = OpSpec(
    name="spatial_attention",
    module=__package__,
    function=function,
    reference=reference_function,
    samples=samples,
    predicates=api.PREDICATES,
    invalid=invalid,
    bench=bench,
    peers=attention_peers(axis=2),
    error_multiple=2.0,
    # Root mean square over 60 seeds in units of eager's, four shapes: output 0.89-1.05, fp32 gradients 1.12-1.67 (less
    # with more positions: 1.42 at 64), bf16 0.43-0.98. A loss of the library's kernel in fp32, and no luck.
    error_reason="flash backward recomputes the weights as exp(logit - logsumexp), doubling the rounding of logits",
    summary="attention over the positions of every frame, by the library's kernels on strided views",
)
