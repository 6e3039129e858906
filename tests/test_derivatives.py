"""Derivatives beyond the first in reverse mode, for every op room and backend: nothing here knows a particular op.

The oracle is the reference in float64, itself held against finite differences.
"""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.autograd.forward_ad as forward_ad
from torch import Tensor

import vdiff_fast as vf
from tests.checks import as_tuple, fresh
from tests.test_contract import SPECS, _device, _marks, _skip_if_unbuilt
from vdiff_fast import _library
from vdiff_fast._spec import OpSpec, Sample

MOST_ELEMENTS = 8000
STEP = 1e-5
Function = Callable[..., tuple[Tensor, ...]]


def _dtype(backend: str) -> torch.dtype:
    return torch.float32 if backend in ("triton", "cuda", "xformers") else torch.float64


def _positions(sample: Sample) -> list[int]:
    """Which of its tensors a sample differentiates; where that is none, those of its widest floating dtype."""
    tensors = sample.tensors()
    widest = max((t.dtype for t in tensors if t.is_floating_point()), key=lambda d: d.itemsize, default=None)
    learned = [i for i, t in enumerate(tensors) if t.requires_grad]
    return learned or [i for i, t in enumerate(tensors) if t.dtype == widest]


def _elements(sample: Sample) -> int:
    return sum(sample.tensors()[i].numel() for i in _positions(sample))


def _samples(spec: OpSpec, backend: str, dtype: torch.dtype) -> Iterator[Sample]:
    """The small samples; one alone where kernels are interpreted."""
    found = (s for s in spec.samples(_device(backend), dtype) if 0 < _elements(s) <= MOST_ELEMENTS)
    if backend == "triton" and _library.INTERPRETING:
        found = iter(sorted(found, key=_elements)[:1])
    return found


def _cases(*, learned: bool = False) -> list[Any]:
    """Every op with a differentiable input on every backend; `learned`: with one whose gradient the kernels have."""
    cases = []
    for spec in SPECS:
        samples = list(_samples(spec, "reference", torch.float64))
        if any(s.differentiable() if learned else _positions(s) for s in samples):
            cases += [pytest.param(spec, b, id=f"{spec.name}-{b}", marks=_marks(b, True)) for b in spec.predicates]
    return cases


def _of_inputs(
    function: Callable[..., Any], sample: Sample, positions: list[int] | None = None
) -> tuple[Function, list[Tensor]]:
    """The call as a function of its differentiable inputs alone, and these."""
    positions = _positions(sample) if positions is None else positions

    def call(*tensors: Tensor) -> tuple[Tensor, ...]:
        replacement, counter = dict(zip(positions, tensors)), itertools.count()
        swapped = sample.map_tensors(lambda t: replacement.get(next(counter), t))
        return as_tuple(function(*swapped.args, **swapped.kwargs))

    tensors = sample.tensors()
    return call, [tensors[i].detach() for i in positions]


def _random_like(tensors: list[Tensor], draw: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(draw)
    return [torch.randn(t.shape, generator=generator, dtype=torch.float64).to(t) for t in tensors]


def _close(actual: Any, wanted: Any, dtype: torch.dtype, what: str) -> None:
    """Equal to the reference's to rounding: the same formula, of inputs that were made ready for kernels."""
    tolerance = 1e-9 if dtype == torch.float64 else 2e-5
    for i, (a, w) in enumerate(zip(actual, wanted, strict=True)):
        a, w = a.detach(), w.detach()
        scale = max(float(w.nan_to_num().abs().amax()), 1.0) if w.numel() else 1.0
        torch.testing.assert_close(
            a, w, rtol=tolerance, atol=tolerance * scale, equal_nan=True, msg=lambda m, i=i: f"{what} {i}: {m}"
        )


def _derivatives(function: Function, inputs: list[Tensor], orders: int) -> list[Tensor]:
    """Gradients of the sine of the outputs, then of the sine of these, and so on."""
    inputs = [x.detach().clone().requires_grad_() for x in inputs]
    values, found = [o for o in function(*inputs) if o.requires_grad], []
    for order in range(1, orders + 1):
        total = torch.stack([v.double().sin().sum() for v in values]).sum()
        values = torch.autograd.grad(total, inputs, create_graph=order < orders, materialize_grads=True)
        found += values
    return found


@pytest.mark.parametrize("spec", [pytest.param(s, id=s.name) for s in SPECS if s.gradcheck])
def test_the_reference_has_right_second_derivatives(spec: OpSpec) -> None:
    for sample in _samples(spec, "reference", torch.float64):
        if sample.differentiable():
            call, inputs = _of_inputs(spec.reference, sample)
            inputs = [x.requires_grad_() for x in inputs]
            assert torch.autograd.gradgradcheck(call, inputs, fast_mode=True), sample.name


@pytest.mark.parametrize(("spec", "backend"), _cases(learned=True))
def test_derivatives_of_derivatives(spec: OpSpec, backend: str) -> None:
    """The first three orders, of every differentiable input, equal the reference's."""
    _skip_if_unbuilt(backend)
    dtype = _dtype(backend)
    for sample in _samples(spec, backend, dtype):
        if not sample.differentiable():
            continue
        orders = 3 if _elements(sample) < 1000 else 2
        wanted = _derivatives(*_of_inputs(spec.reference, sample), orders)
        with vf.use_backend(backend, ops=[spec.name]):
            actual = _derivatives(*_of_inputs(spec.function, sample), orders)
        _close(actual, wanted, dtype, f"{sample.name}, derivative")


def _difference(function: Function, inputs: list[Tensor], tangents: list[Tensor]) -> list[Tensor]:
    """J v by central differences of fourth order."""
    steps = [function(*(x + s * STEP * v for x, v in zip(inputs, tangents))) for s in (-2, -1, 1, 2)]
    return [(8 * (c - b) - (d - a)) / (12 * STEP) for a, b, c, d in zip(*steps)]


def _differentiable(function: Function, inputs: list[Tensor], tangents: list[Tensor]) -> bool:
    """Whether slopes are the same on both sides, and those along v and v^2 add up: there is a J."""
    behind, here, ahead = (function(*(x + s * STEP * v for x, v in zip(inputs, tangents))) for s in (-2, 0, 2))
    if any((a - 2 * h + b).norm() > 0.05 * (a - b).norm() + 1e-9 * h.norm() for b, h, a in zip(behind, here, ahead)):
        return False
    others = [v * v for v in tangents]
    along = [_difference(function, inputs, t) for t in (tangents, others, [v + o for v, o in zip(tangents, others)])]
    return all((v + o - both).norm() <= 1e-6 * max(both.norm(), 1.0) for v, o, both in zip(*along))


def _dual(function: Function, inputs: list[Tensor], tangents: list[Tensor]) -> list[Tensor]:
    with forward_ad.dual_level():
        outputs = function(*(forward_ad.make_dual(x, v) for x, v in zip(inputs, tangents)))
        found = [forward_ad.unpack_dual(o).tangent for o in outputs]
    assert all(t is not None for t in found), "a tangent was dropped"
    return [t.detach() for t in found]


@pytest.mark.parametrize(("spec", "backend"), _cases())
def test_forward_mode(spec: OpSpec, backend: str) -> None:
    """Dual numbers and torch.func.jvp give J v, with inputs that require gradients and without."""
    _skip_if_unbuilt(backend)
    dtype, smooth = _dtype(backend), 0
    for sample in _samples(spec, backend, dtype):
        exact, double = _of_inputs(spec.reference, fresh(sample, torch.float64), _positions(sample))
        tangents = _random_like(double, draw=zlib.crc32(sample.name.encode()))
        wanted = _difference(exact, double, tangents) if _differentiable(exact, double, tangents) else []
        with vf.use_backend(backend, ops=[spec.name]):
            found = _pushed(spec, sample, tangents, dtype)
        for name, pushed in found.items() if wanted else ():
            for f, w in zip(pushed, wanted, strict=True):
                error = float((f.double() - w).norm()) / max(float(w.norm()), 1.0)
                assert error < (1e-7 if dtype == torch.float64 else 2e-5), f"{sample.name} {name}: {error}"
        smooth += bool(wanted)
    assert smooth, "no sample is differentiable"


def _pushed(spec: OpSpec, sample: Sample, tangents: list[Tensor], dtype: torch.dtype) -> dict[str, Any]:
    """J v in three ways; the value beside it is the plain call's."""
    call, inputs = _of_inputs(spec.function, sample)
    tangents = [v.to(x.dtype) for v, x in zip(tangents, inputs)]
    values, by_jvp = torch.func.jvp(call, tuple(inputs), tuple(tangents))
    _close(values, call(*inputs), dtype, f"{sample.name}, value")
    learned = [x.clone().requires_grad_() for x in inputs]
    return {"dual": _dual(call, inputs, tangents), "learned": _dual(call, learned, tangents), "jvp": by_jvp}


@pytest.mark.parametrize(("spec", "backend"), _cases())
def test_vmap_is_a_loop(spec: OpSpec, backend: str) -> None:
    _skip_if_unbuilt(backend)
    dtype = _dtype(backend)
    for sample in _samples(spec, backend, dtype):
        call, inputs = _of_inputs(spec.function, sample)
        several = [torch.stack([x, 0.5 * x, -1.5 * x]) for x in inputs]
        with vf.use_backend(backend, ops=[spec.name]):
            mapped = torch.func.vmap(call)(*several)
            looped = [call(*(s[i] for s in several)) for i in range(3)]
        _close(mapped, [torch.stack(o) for o in zip(*looped)], dtype, f"{sample.name}, output")


@pytest.mark.parametrize(("spec", "backend"), _cases(learned=True))
def test_transforms_compose(spec: OpSpec, backend: str) -> None:
    """vjp, grad over jvp, jvp over grad, and per-sample gradients, against derivatives in reverse mode alone."""
    _skip_if_unbuilt(backend)
    dtype = _dtype(backend)
    sample = min((s for s in _samples(spec, backend, dtype) if s.differentiable()), key=_elements)
    call, inputs = _of_inputs(spec.function, sample)
    tangents = _random_like(inputs, draw=7)

    def loss(*tensors: Tensor) -> Tensor:
        return torch.stack([o.sin().sum() for o in call(*tensors)]).sum()

    def slope(*tensors: Tensor) -> Tensor:
        return torch.func.jvp(loss, tensors, tuple(tangents))[1]

    every = tuple(range(len(inputs)))
    with vf.use_backend("reference", ops=[spec.name]):
        leaves = [x.clone().requires_grad_() for x in inputs]
        first = torch.autograd.grad(loss(*leaves), leaves, create_graph=True)
        along = torch.stack([(g * v).sum() for g, v in zip(first, tangents)]).sum()
        second = torch.autograd.grad(along, leaves, materialize_grads=True)
    with vf.use_backend(backend, ops=[spec.name]):
        _close(torch.func.vjp(loss, *inputs)[1](torch.ones((), dtype=first[0].dtype)), first, dtype, "vjp")
        forward_over_reverse = torch.func.jvp(torch.func.grad(loss, every), tuple(inputs), tuple(tangents))[1]
        _close(forward_over_reverse, second, dtype, "jvp of grad")
        _close(torch.func.grad(slope, every)(*inputs), second, dtype, "grad of jvp")
        with forward_ad.dual_level():
            leaves = [x.clone().requires_grad_() for x in inputs]
            tangent = forward_ad.unpack_dual(
                loss(*(forward_ad.make_dual(x, v) for x, v in zip(leaves, tangents)))
            ).tangent
            _close(
                torch.autograd.grad(tangent, leaves, create_graph=True, materialize_grads=True),
                second,
                dtype,
                "gradient of a tangent",
            )
        mapped = torch.func.vmap(torch.func.grad(loss, every))(*(torch.stack([x, x]) for x in inputs))
        _close([m[1] for m in mapped], first, dtype, "vmap of grad")


@pytest.mark.parametrize(("spec", "backend"), _cases(learned=True))
def test_a_backward_may_be_mapped_and_followed(spec: OpSpec, backend: str) -> None:
    """The graph is recorded by kernels; its backward runs under vmap, and on gradients that carry tangents."""
    if backend == "reference":
        pytest.skip("its graph is torch's own, whose backwards know no tangents unless they are differentiated again")
    _skip_if_unbuilt(backend)
    dtype = _dtype(backend)
    for sample in (s for s in _samples(spec, backend, dtype) if s.differentiable()):
        with vf.use_backend(backend, ops=[spec.name]):
            _assert_backward_may_be_mapped_and_followed(spec, sample, dtype)


def _assert_backward_may_be_mapped_and_followed(spec: OpSpec, sample: Sample, dtype: torch.dtype) -> None:
    call, inputs = _of_inputs(spec.function, sample)
    leaves = [x.clone().requires_grad_() for x in inputs]
    outputs = [o for o in call(*leaves) if o.requires_grad]
    upstream, other = _random_like(outputs, draw=3), _random_like(outputs, draw=4)

    def pull(*cotangents: Tensor) -> tuple[Tensor, ...]:
        return torch.autograd.grad(outputs, leaves, cotangents, retain_graph=True, materialize_grads=True)

    several = [torch.stack(pair) for pair in zip(upstream, other)]
    looped = [torch.stack(pair) for pair in zip(pull(*upstream), pull(*other))]
    _close(torch.func.vmap(pull)(*several), looped, dtype, f"{sample.name}, mapped gradient")
    with forward_ad.dual_level():
        found = pull(*(forward_ad.make_dual(u, o) for u, o in zip(upstream, other)))
        tangents = [forward_ad.unpack_dual(f).tangent for f in found]
    wanted = pull(*other)
    tangents = [torch.zeros_like(w) if t is None else t for t, w in zip(tangents, wanted)]
    _close(tangents, wanted, dtype, f"{sample.name}, tangent of the gradient")
