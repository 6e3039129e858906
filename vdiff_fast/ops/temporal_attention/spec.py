"""What the generic tests and benchmarks know of temporal_attention."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from vdiff_fast._spec import Invalid, OpSpec, Sample, randn
from vdiff_fast.ops.qk_norm_rope.tables import rope_tables
from vdiff_fast.ops.temporal_attention import api, reference


def function(x: Tensor, *others: Tensor, **options: Any) -> Tensor:
    return (api.temporal_attention if others else api.temporal_attention_qkv)(x, *others, **options)


function.__doc__ = api.temporal_attention.__doc__


def reference_function(x: Tensor, *others: Tensor, **options: Any) -> Tensor:
    return (reference.temporal_attention if others else reference.temporal_attention_qkv)(x, *others, **options)


def _tokens(shape: tuple[int, ...], device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    q, k, v = (randn(shape, device, dtype, seed=i) for i in range(3))
    return q, k, v


def _norm(d: int, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, ...]:
    weights = (1 + 0.3 * randn((d,), device, dtype, seed=i, grad=False) for i in (5, 6))
    return tuple(w.detach().requires_grad_() for w in weights)


def options(frames: int, heads: int, d: int, batch: int, device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    """Every option at once."""
    mask = torch.ones(batch, frames, dtype=torch.bool, device=device)
    mask[0, frames // 2 :: 3] = False
    return {
        "bias": randn((heads, frames, frames), device, dtype, seed=4),
        "causal": True,
        "mask": mask,
        "qk_norm": _norm(d, device, dtype),
        "rope": tuple(t.to(device=device, dtype=dtype) for t in rope_tables(frames, d)),
        "scale": 0.7 * d**-0.5,
    }


def samples(device: torch.device, dtype: torch.dtype) -> Iterator[Sample]:
    for shape in [(1, 16, 3, 2, 8), (2, 5, 4, 1, 40), (1, 1, 2, 2, 16), (1, 8, 5, 2, 32), (1, 17, 2, 1, 72)]:
        yield Sample("x".join(map(str, shape)), _tokens(shape, device, dtype))
    for frames in (8, 25):
        everything = options(frames, 2, 16, 2, device, dtype)
        yield Sample(f"options-T{frames}", _tokens((2, frames, 3, 2, 16), device, dtype), everything)
    packed = randn((2, 6, 5, 3, 2, 24), device, dtype)
    yield Sample("packed", (packed,), options(6, 2, 24, 2, device, dtype))
    bias = randn((2, 16, 16), device, dtype, seed=4)
    yield Sample("packed-bias", (randn((1, 16, 9, 3, 2, 8), device, dtype),), {"bias": bias})
    blind = torch.zeros(2, 4, dtype=torch.bool, device=device)
    blind[1, 2] = True
    yield Sample("blind", _tokens((2, 4, 3, 2, 8), device, dtype), {"mask": blind, "causal": True})
    yield Sample("empty", _tokens((1, 4, 0, 2, 8), device, dtype))
    yield Sample("no-frames", _tokens((1, 0, 3, 2, 8), device, dtype))
    strided = tuple(x.detach().transpose(1, 2).requires_grad_() for x in _tokens((1, 5, 7, 2, 8), device, dtype))
    yield Sample("strided", strided)


def invalid() -> Iterator[Invalid]:
    x = torch.zeros(1, 4, 3, 2, 8)
    call = api.temporal_attention
    yield Invalid("heads", lambda: call(x, x[..., :1, :], x), ValueError, "k has 1 heads, q has 2")
    yield Invalid(
        "bias", lambda: call(x, x, x, bias=torch.zeros(2, 3, 3)), ValueError, "4 frames > 3 of the bias table"
    )
    yield Invalid("large-bias", lambda: call(x, x, x, bias=torch.zeros(2, 6, 6)), ValueError, r"\(2, 4, 4\), got")
    yield Invalid("mask", lambda: call(x, x, x, mask=torch.ones(1, 4)), TypeError, "mask must be bool")
    wide = torch.ones(1, 5, dtype=torch.bool)
    yield Invalid("mask-shape", lambda: call(x, x, x, mask=wide), ValueError, r"\(B, T\) = \(1, 4\), got \(1, 5\)")
    odd = torch.zeros(1, 4, 3, 2, 12)
    yield Invalid("head-dim", lambda: call(odd, odd, odd), ValueError, "head dim 12 of q must be a multiple of 8")
    yield Invalid("integer", lambda: call(x.long(), x, x), TypeError, "q must be floating point, got torch.int64")
    yield Invalid("dtypes", lambda: call(x, x.half(), x), TypeError, "k is torch.float16")
    yield Invalid("tables", lambda: call(x, x, x, rope=rope_tables(3, 8)), ValueError, r"= \(4, 4\), got \(3, 4\)")
    packed = api.temporal_attention_qkv
    yield Invalid("packed", lambda: packed(x), ValueError, r"qkv must be \(B, T, S, 3, heads, d\)")


SPEC = OpSpec(
    name="temporal_attention",
    module=__package__,
    function=function,
    reference=reference_function,
    samples=samples,
    predicates=api.PREDICATES,
    invalid=invalid,
    error_multiple=1.5,
    error_reason="sums run in at most four chains, eager's matrix products in more; without FMA products round too",
    summary="attention over the frames of every position, options fused",
)
