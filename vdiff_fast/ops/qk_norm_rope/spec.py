"""What the generic tests and benchmarks know of qk_norm_rope."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from vdiff_fast._spec import Invalid, OpSpec, Sample, randn
from vdiff_fast.ops.qk_norm_rope import api, reference
from vdiff_fast.ops.qk_norm_rope.tables import rope_tables


def samples(device: torch.device, dtype: torch.dtype) -> Iterator[Sample]:
    for d in (8, 40, 128):
        shape = (2, 2, 6, 2, d)
        q, k = (randn(shape, device, dtype, seed=i) for i in range(2))
        norm = tuple(1 + 0.3 * randn((d,), device, dtype, seed=i, grad=False) for i in (2, 3))
        norm = tuple(w.detach().requires_grad_() for w in norm)
        rope = tuple(t.to(device) for t in rope_tables(6, d))
        yield Sample(f"both-d{d}", (q, k), {"qk_norm": norm, "rope": rope})
        if d == 40:
            yield Sample("norm", (q, k), {"qk_norm": norm})
            yield Sample("rope", (q, k), {"rope": rope})
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


SPEC = OpSpec(
    name="qk_norm_rope",
    module=__package__,
    function=api.qk_norm_rope,
    reference=reference.qk_norm_rope,
    samples=samples,
    predicates=api.PREDICATES,
    invalid=invalid,
    summary="RMS normalisation of queries and keys and rotary embedding in one pass",
)
