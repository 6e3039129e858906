"""What the generic tests and benchmarks know of qk_norm_rope."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from vdiff_fast._spec import AotCase, BenchCase, Invalid, OpSpec, Sample, randn
from vdiff_fast.ops._common.cases.layers import ATTENTION_LAYERS, AttentionLayer
from vdiff_fast.ops.qk_norm_rope import api, reference
from vdiff_fast.ops.qk_norm_rope.config import tile_config
from vdiff_fast.ops.qk_norm_rope.tables import rope_tables


def _norm(d: int, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, ...]:
    weights = (1 + 0.3 * randn((d,), device, dtype, seed=i, grad=False) for i in (2, 3))
    return tuple(w.detach().requires_grad_() for w in weights)


def _tables(positions: int, d: int, device: torch.device) -> tuple[Tensor, ...]:
    return tuple(t.to(device) for t in rope_tables(positions, d))


def samples(device: torch.device, dtype: torch.dtype) -> Iterator[Sample]:
    for d in (8, 40, 72, 128):
        shape = (2, 2, 6, 2, d)
        q, k = (randn(shape, device, dtype, seed=i) for i in range(2))
        norm, rope = _norm(d, device, dtype), _tables(6, d, device)
        yield Sample(f"both-d{d}", (q, k), {"qk_norm": norm, "rope": rope})
        if d == 40:
            yield Sample("norm", (q, k), {"qk_norm": norm})
            yield Sample("rope", (q, k), {"rope": rope})
    q, k = (randn((2, 3, n, 4, 24), device, dtype, seed=n) for n in (17, 5))
    yield Sample("lengths-differ", (q, k), {"qk_norm": _norm(24, device, dtype), "eps": 1e-2})
    packed = randn((1, 2, 35, 3, 3, 16), device, dtype, grad=False)
    q, k, _ = (x.detach().requires_grad_() for x in packed.unbind(3))
    yield Sample("packed", (q, k), {"qk_norm": _norm(16, device, dtype), "rope": _tables(35, 16, device)})
    strided = (randn((2, 5, 3, 2, 8), device, dtype, seed=i, grad=False).transpose(1, 2) for i in range(2))
    yield Sample("strided", tuple(x.requires_grad_() for x in strided), {"rope": _tables(5, 8, device)})
    yield Sample("empty", tuple(randn((0, 2, 3, 2, 8), device, dtype) for _ in range(2)))


def invalid() -> Iterator[Invalid]:
    x = torch.zeros(1, 2, 3, 2, 8)
    call = api.qk_norm_rope
    yield Invalid("rank", lambda: call(x[0], x), ValueError, r"q must be \(B, T, S, heads, d\), got shape")
    yield Invalid("heads", lambda: call(x, x[..., :1, :]), ValueError, r"q has \(heads, d\) = \(2, 8\), k has \(1, 8\)")
    yield Invalid("dtype", lambda: call(x, x.half()), TypeError, "k is torch.float16")
    weights = (torch.ones(4), torch.ones(8))
    yield Invalid("weight", lambda: call(x, x, qk_norm=weights), ValueError, r"weight of q must be \(8,\), got \(4,\)")
    yield Invalid("tables", lambda: call(x, x, rope=rope_tables(5, 8)), ValueError, r"= \(3, 4\), got \(5, 4\)")

    grad = x.clone().requires_grad_()
    yield Invalid("inplace", lambda: call(grad, x, inplace=True), ValueError, "inplace=True overwrites what")
    yield Invalid("frames", lambda: call(x, x[:, :1]), ValueError, r"q has \(B, T\) = \(1, 2\), k has \(1, 1\)")


def bench() -> Iterator[BenchCase]:
    """Queries and keys out of one packed projection, normed and turned over (H, W)."""
    for layer in ATTENTION_LAYERS:

        def sample(device: torch.device, dtype: torch.dtype, layer: AttentionLayer = layer) -> Sample:
            packed = randn(layer.packed_shape, device, dtype, grad=False)
            q, k, _ = (x.detach().requires_grad_() for x in packed.unbind(3))
            options = {
                "qk_norm": _norm(layer.head_dim, device, dtype),
                "rope": _tables(layer.positions, layer.head_dim, device),
            }
            return Sample(layer.name, (q, k), options)

        yield BenchCase(
            name=layer.name,
            sample=sample,
            bytes_forward=4 * 4 * layer.elements,
            bytes_backward=6 * 4 * layer.elements,
            tags=("gpu",) if layer.gpu else (),
        )


_POINTERS = {
    "forward_kernel": ("q", "k", "qy", "ky"),
    "backward_kernel": ("dq", "dk", "q", "k", "qx", "kx"),
}
_PARAMETERS = ("qw", "kw", "cos", "sin")
_STRIDED = {"forward_kernel": ("q", "k", "qy", "ky"), "backward_kernel": ("dq", "dk", "q", "k")}
_SIZES = {
    "forward_kernel": {"q_blocks": "i64"},
    "backward_kernel": dict.fromkeys(("q_programs", "k_programs", "q_blocks", "k_blocks"), "i32"),
}


def _aot_case(kernel: str, d: int, dtype: str, norm: bool, rope: bool) -> AotCase:
    tile = tile_config(d, backward=kernel == "backward_kernel")
    pointers = [f"{x}_ptr" for x in _POINTERS[kernel]]
    partials = ["q_partial_ptr", "k_partial_ptr"] if kernel == "backward_kernel" else []
    strides = [f"{x}_{axis}" for x in _STRIDED[kernel] for axis in "btsh"]
    return AotCase(
        name=f"qk_norm_rope_{kernel}_d{d}_{dtype}{'_norm' if norm else ''}{'_rope' if rope else ''}",
        kernel=kernel,
        signature=dict.fromkeys(pointers, f"*{dtype}")
        | dict.fromkeys([f"{x}_ptr" for x in _PARAMETERS] + partials, "*fp32")
        | dict.fromkeys(strides, "i64")
        | _SIZES[kernel]
        | dict.fromkeys(("T", "q_S", "k_S", "heads"), "i32")
        | {"eps": "fp32"},
        constants={"d": d, "UNIT": 8, "ROWS": tile.rows, "WIDTH": tile.width, "NORM": norm, "ROPE": rope},
        divisible=tuple(pointers),
        num_warps=tile.num_warps,
    )


def aot() -> Iterator[AotCase]:
    for kernel in _POINTERS:
        for d in (8, 40, 64, 128):
            yield _aot_case(kernel, d, "bf16", True, True)
        yield _aot_case(kernel, 128, "fp32", True, True)
        yield _aot_case(kernel, 72, "bf16", True, False)
        yield _aot_case(kernel, 72, "bf16", False, True)


SPEC = OpSpec(
    name="qk_norm_rope",
    module=__package__,
    function=api.qk_norm_rope,
    reference=reference.qk_norm_rope,
    samples=samples,
    predicates=api.PREDICATES,
    invalid=invalid,
    bench=bench,
    aot=aot,
    error_multiple=1.3,
    error_reason="a weight's gradient is d sums of an ulp each: the ratio of two such errors scatters by 15 %",
    summary="RMS normalisation of queries and keys and rotary embedding in one pass",
)
