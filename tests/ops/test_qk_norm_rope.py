"""Query and key norm with rotation: in place, over (H, W), and what it keeps for the backward."""

from __future__ import annotations

import pytest
import torch

import vdiff_fast as vf
from vdiff_fast import _library
from vdiff_fast.ops.qk_norm_rope.tables import axis_pairs, grid_tables, rope_tables

needs_cpu_kernels = pytest.mark.skipif(_library.CPU.reason is not None, reason=str(_library.CPU.reason))
BACKENDS = [
    pytest.param("reference", marks=[]),
    pytest.param("cpu", marks=needs_cpu_kernels),
    pytest.param("triton", marks=pytest.mark.interpreter),
]


def _norm(d: int) -> tuple[torch.Tensor, torch.Tensor]:
    return 1 + 0.3 * torch.randn(d), 1 + 0.3 * torch.randn(d)


@pytest.mark.parametrize("backend", BACKENDS)
def test_in_place_writes_the_same_bits_into_packed_memory(backend: str) -> None:
    packed = torch.randn(2, 2, 9, 3, 3, 24)
    v = packed[:, :, :, 2].clone()
    options = {"qk_norm": _norm(24), "rope": rope_tables(9, 24)}
    with vf.use_backend(backend, ops=["qk_norm_rope"]):
        expected = vf.ops.qk_norm_rope(packed[:, :, :, 0], packed[:, :, :, 1], **options)
        q, k = vf.ops.qk_norm_rope(packed[:, :, :, 0], packed[:, :, :, 1], **options, inplace=True)
    assert q.data_ptr() == packed.data_ptr()
    for actual, exact, i in ((q, expected[0], 0), (k, expected[1], 1)):
        assert torch.equal(actual, exact)
        assert torch.equal(packed[:, :, :, i], exact)
    assert torch.equal(packed[:, :, :, 2], v)


@needs_cpu_kernels
def test_in_place_without_unit_stride_in_d() -> None:
    q, k = (torch.randn(1, 2, 16, 2, 5).transpose(2, 4) for _ in range(2))
    expected = vf.ops.qk_norm_rope(q, k, qk_norm=(torch.ones(16), torch.ones(16)))
    vf.ops.qk_norm_rope(q, k, qk_norm=(torch.ones(16), torch.ones(16)), inplace=True)
    assert torch.equal(q, expected[0])
    assert torch.equal(k, expected[1])


@needs_cpu_kernels
def test_in_place_passes_opcheck() -> None:
    q, k = torch.randn(1, 2, 4, 2, 8), torch.randn(1, 2, 4, 2, 8)
    cos, sin = rope_tables(4, 8)
    arguments = (q, k, torch.ones(8), torch.ones(8), cos, sin, 1e-6)
    torch.library.opcheck(torch.ops.vdiff_fast.qk_norm_rope_inplace.default, arguments)


@pytest.mark.parametrize("backend", BACKENDS)
def test_logits_depend_on_the_distance_in_rows_and_columns_alone(backend: str) -> None:
    """Two axes: turning by (row, column) leaves q . k a function of the difference of both."""
    height, width, d = 3, 5, 16
    tables = [rope_tables(n, 2 * pairs) for n, pairs in zip((height, width), axis_pairs(d, 2))]
    q, k = (torch.randn(1, 1, 1, 1, d).expand(1, 1, height * width, 1, d) for _ in range(2))
    with vf.use_backend(backend, ops=["qk_norm_rope"]):
        q, k = vf.ops.qk_norm_rope(q, k, rope=grid_tables(tables, (height, width)))
    logits = torch.einsum("btshd,btrhd->sr", q, k).reshape(height, width, height, width)
    torch.testing.assert_close(logits[0, 0, 1, 2], logits[1, 2, 2, 4], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(logits[2, 1, 0, 3], logits[2, 0, 0, 2], rtol=1e-4, atol=1e-5)
    assert (logits[0, 0] - logits[0, 0, 0, 0]).abs().amax() > 0.1


@needs_cpu_kernels
def test_rotation_alone_saves_no_activation() -> None:
    q, k = (torch.randn(1, 2, 6, 2, 8, requires_grad=True) for _ in range(2))
    saved: list[torch.Size] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.shape) or t, lambda t: t):
        vf.ops.qk_norm_rope(q, k, rope=rope_tables(6, 8))
    assert set(saved) == {torch.Size((6, 4))}


@needs_cpu_kernels
def test_the_answer_does_not_depend_on_the_number_of_threads() -> None:
    q, k = (torch.randn(2, 4, 300, 4, 40, requires_grad=True) for _ in range(2))
    norm = tuple(w.requires_grad_() for w in _norm(40))
    results, before = [], torch.get_num_threads()
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            out = vf.ops.qk_norm_rope(q, k, qk_norm=norm, rope=rope_tables(300, 40))
            results.append((*out, *torch.autograd.grad(out[0].square().sum() + out[1].sum(), (q, k, *norm))))
    finally:
        torch.set_num_threads(before)
    for a, b in zip(*results):
        assert torch.equal(a, b)
