"""The contract of an op, for every op room, backend and dtype: nothing here knows a particular op."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

import vdiff_fast as vf
from tests.checks import CallRecorder, as_tuple, assert_as_close_as_eager, fresh, run
from vdiff_fast import _library, _requested
from vdiff_fast._spec import OpSpec, Sample
from vdiff_fast.ops.spatial_attention.sdpa import XFORMERS_REASON

pytestmark = pytest.mark.usefixtures("two_threads")
CPU = torch.device("cpu")
SPECS = vf.ops.specs()


def _device(backend: str) -> torch.device:
    on_gpu = ("cuda", "triton", "xformers")
    return torch.device("cuda" if backend in on_gpu and not _library.INTERPRETING else "cpu")


def _dtypes(backend: str, spec: OpSpec) -> tuple[torch.dtype, ...]:
    """What a backend is tested in; the first of them where one is enough."""
    if backend == "triton" and _library.INTERPRETING:
        return torch.float32, torch.float16  # the interpreter truncates on a bf16 store
    return spec.dtypes.get(backend, (torch.float32, torch.bfloat16, torch.float16))


def _marks(backend: str, interpreted: bool) -> list[pytest.MarkDecorator]:
    if backend == "triton" and interpreted:
        return [pytest.mark.interpreter] if not torch.cuda.is_available() else [pytest.mark.gpu]
    return [pytest.mark.gpu] if backend in ("cuda", "triton", "xformers") else []


def _cases(with_samples: bool = True, interpreted: bool = True) -> list[Any]:
    cases = []
    for spec in SPECS:
        for backend in spec.predicates:
            for sample in spec.samples(CPU, torch.float32) if with_samples else [None]:
                name = "-".join([spec.name, backend] + ([sample.name] if sample else []))
                arguments = (spec, backend, sample.name) if sample else (spec, backend)
                cases.append(pytest.param(*arguments, id=name, marks=_marks(backend, interpreted)))
    return cases


def _sample(spec: OpSpec, backend: str, name: str, dtype: torch.dtype) -> Sample:
    return next(s for s in spec.samples(_device(backend), dtype) if s.name == name)


def _every_third(spec: OpSpec, backend: str) -> Iterator[Sample]:
    return itertools.islice(spec.samples(_device(backend), _dtypes(backend, spec)[0]), 0, None, 3)


def _skip_if_unbuilt(backend: str) -> None:
    reasons = {"cpu": _library.CPU.reason, "cuda": _library.CUDA.reason, "xformers": XFORMERS_REASON}
    reason = reasons.get(backend)
    if reason:
        pytest.skip(reason)


@pytest.mark.parametrize(("spec", "backend", "name"), _cases())
def test_as_close_to_float64_as_eager(spec: OpSpec, backend: str, name: str) -> None:
    _skip_if_unbuilt(backend)
    with vf.use_backend(backend, ops=[spec.name]):
        for dtype in _dtypes(backend, spec):
            assert_as_close_as_eager(spec, _sample(spec, backend, name, dtype), dtype)


@pytest.mark.parametrize("spec", [pytest.param(s, id=s.name) for s in SPECS if "cpu" in s.predicates])
def test_every_instruction_set(spec: OpSpec, isa: str) -> None:
    with vf.use_backend("cpu", ops=[spec.name]):
        for dtype in _dtypes("cpu", spec):
            for sample in spec.samples(CPU, dtype):
                assert_as_close_as_eager(spec, sample, dtype)


@pytest.mark.parametrize(("spec", "backend", "name"), _cases())
def test_gradients_arrive_expanded(spec: OpSpec, backend: str, name: str) -> None:
    """`out.sum().backward()` sends a stride-0 gradient; it must give what a dense gradient of ones gives."""
    _skip_if_unbuilt(backend)
    with vf.use_backend(backend, ops=[spec.name]):
        results = []
        for dense in (False, True):
            sample = fresh(_sample(spec, backend, name, _dtypes(backend, spec)[0]))
            outputs = [o for o in as_tuple(spec.function(*sample.args, **sample.kwargs)) if o.requires_grad]
            if not outputs:
                pytest.skip("nothing to differentiate")
            if dense:
                torch.autograd.backward(outputs, [torch.ones_like(o).contiguous() for o in outputs])
            else:
                sum(o.sum() for o in outputs).backward()
            results.append([t.grad for t in sample.differentiable()])
    for expanded, dense_gradient in zip(*results):
        assert (expanded is None) == (dense_gradient is None)
        if expanded is not None:
            torch.testing.assert_close(expanded, dense_gradient, rtol=1e-5, atol=1e-5)


def _strided(t: torch.Tensor) -> torch.Tensor:
    """The same values as every other element of a tensor twice as wide, which is what `chunk` makes of an embedding."""
    if not t.is_floating_point() or not t.dim():
        return t
    wide = torch.stack([t.detach(), torch.full_like(t, float("nan"))], -1)
    return wide[..., 0].requires_grad_(t.requires_grad)


@pytest.mark.parametrize(("spec", "backend", "name"), _cases())
def test_inputs_may_have_any_strides(spec: OpSpec, backend: str, name: str) -> None:
    _skip_if_unbuilt(backend)
    dtype = _dtypes(backend, spec)[0]
    sample = _sample(spec, backend, name, dtype)
    with vf.use_backend(backend, ops=[spec.name]):
        plain = run(spec.function, fresh(sample), dtype)
        strided = run(spec.function, sample.map_tensors(_strided), dtype)
    for a, b in zip(plain[0] + plain[1], strided[0] + strided[1]):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5, equal_nan=True, check_stride=False)


# One program after the other, as the interpreter runs them, always gives the same bits.
@pytest.mark.parametrize(("spec", "backend", "name"), _cases(interpreted=False))
def test_same_bits_from_run_to_run(spec: OpSpec, backend: str, name: str) -> None:
    _skip_if_unbuilt(backend)
    with vf.use_backend(backend, ops=[spec.name]):
        dtype = _dtypes(backend, spec)[0]
        sample = _sample(spec, backend, name, dtype)
        first, second = (run(spec.function, fresh(sample), dtype) for _ in range(2))
    for a, b in zip(first[0] + first[1], second[0] + second[1]):
        assert torch.equal(a, b) or bool((a.isnan() == b.isnan()).all() and torch.equal(a.nan_to_num(), b.nan_to_num()))


@pytest.mark.parametrize(("spec", "backend", "name"), _cases())
def test_output_layout_follows_the_reference_in_shape_and_input_in_memory(
    spec: OpSpec, backend: str, name: str
) -> None:
    _skip_if_unbuilt(backend)
    sample = fresh(_sample(spec, backend, name, _dtypes(backend, spec)[0]))
    expected = as_tuple(spec.reference(*sample.args, **sample.kwargs))
    with vf.use_backend(backend, ops=[spec.name]):
        outputs = as_tuple(spec.function(*sample.args, **sample.kwargs))
    x = sample.args[0]
    for output, wanted in zip(outputs, expected):
        assert output.shape == wanted.shape
        same_shape = isinstance(x, torch.Tensor) and output.shape == x.shape and x.is_floating_point()
        if same_shape and x.numel() and vf.layout.is_native(x) and backend != "reference":
            # torch gives size-1 dimensions strides of its own choice.
            assert [s for s, n in zip(output.stride(), x.shape) if n > 1] == [
                s for s, n in zip(x.stride(), x.shape) if n > 1
            ]


@pytest.mark.parametrize(
    ("spec", "name"),
    [
        pytest.param(s, sample.name, id=f"{s.name}-{sample.name}")
        for s in SPECS
        if "cpu" in s.predicates and s.gradcheck
        for sample in s.samples(CPU, torch.float64)
        if sample.differentiable() and sum(t.numel() for t in sample.differentiable()) < 20_000
    ],
)
def test_gradcheck_in_float64(spec: OpSpec, name: str) -> None:
    sample = fresh(_sample(spec, "cpu", name, torch.float64))
    _skip_if_unbuilt("cpu")
    inputs = sample.differentiable()

    def call(*tensors: torch.Tensor) -> Any:
        replacement = {id(old): new for old, new in zip(inputs, tensors)}
        swapped = sample.map_tensors(lambda t: replacement.get(id(t), t))
        return spec.function(*swapped.args, **swapped.kwargs)

    with vf.use_backend("cpu", ops=[spec.name]):
        assert torch.autograd.gradcheck(call, tuple(inputs), fast_mode=True)


@pytest.mark.parametrize(("spec", "backend"), _cases(with_samples=False))
def test_opcheck(spec: OpSpec, backend: str) -> None:
    """Schema, fake and autograd registration of every operator that the op's samples reach.

    In the interpreter every third sample's: Triton's launches allocate by the fakes they share with the CPU's ops.
    """
    _skip_if_unbuilt(backend)
    if backend in ("reference", "sdpa", "xformers"):
        pytest.skip("no operator of its own")
    with vf.use_backend(backend, ops=[spec.name]), CallRecorder() as recorder:
        dtype = _dtypes(backend, spec)[0]
        interpreted = backend == "triton" and _library.INTERPRETING
        for sample in _every_third(spec, backend) if interpreted else spec.samples(_device(backend), dtype):
            run(spec.function, fresh(sample), dtype)
    assert recorder.calls, f"{spec.name} on {backend} reached no operator of its own"
    for operator, args, kwargs in recorder.calls:
        torch.library.opcheck(
            operator, args, kwargs, test_utils=("test_schema", "test_faketensor", "test_aot_dispatch_dynamic")
        )


@pytest.mark.parametrize(("spec", "backend"), _cases(with_samples=False))
def test_compiles_without_a_graph_break(spec: OpSpec, backend: str) -> None:
    """fullgraph and dynamic: every third sample, forward and backward, gives the eager call's values."""
    _skip_if_unbuilt(backend)
    # Tracing is slow, up to 5 s a sample, and alike: where kernels are slow, too, two samples stand for all.
    count = 2 if backend == "reference" or _library.INTERPRETING else None
    with vf.use_backend(backend, ops=[spec.name]):
        dtype = _dtypes(backend, spec)[0]
        torch._dynamo.reset()
        for sample in itertools.islice(_every_third(spec, backend), count):
            # What dynamo knows of the floats stays: else it traces every sample twice to learn that they are constants.
            torch._dynamo.reset_code_caches()
            compiled = torch.compile(spec.function, fullgraph=True, dynamic=True, backend="aot_eager")
            eager = run(spec.function, fresh(sample), dtype)
            traced = run(compiled, fresh(sample), dtype)
            for a, b in zip(eager[0] + eager[1], traced[0] + traced[1]):
                torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5, equal_nan=True)


def _of_first(sample: Sample, others: str) -> tuple[Callable[..., Any], list[torch.Tensor]]:
    """The call as a function of its tensors; a second one of a shape is the first ("same"), or made of it ("derived").

    Attention of x to itself is the one, a scale and a shift of one embedding are the other.
    """
    sample = fresh(sample)
    tensors = sample.tensors()
    alike = [
        next(j for j, u in enumerate(tensors) if u.is_floating_point() and (u.shape, u.dtype) == (t.shape, t.dtype))
        if t.is_floating_point() and t.dim()
        else i
        for i, t in enumerate(tensors)
    ]

    def call(spec: OpSpec, *given: torch.Tensor) -> Any:
        used = [given[j] if i == j or others == "same" else given[j] * 1 + i for i, j in enumerate(alike)]
        replacements = iter(used)
        replaced = sample.map_tensors(lambda t: next(replacements))
        return spec.function(*replaced.args, **replaced.kwargs)

    return call, tensors


# What stands for the second tensor of a shape, and the mode. Without gradients no backward is traced: "eager" will do.
REPEATED = [
    ("same", torch.no_grad, "eager"),
    ("derived", torch.inference_mode, "eager"),
    ("same", torch.enable_grad, "aot_eager"),
    ("derived", torch.enable_grad, "aot_eager"),
]


@pytest.mark.parametrize(("spec", "backend"), _cases(with_samples=False))
def test_compiles_whole_without_gradients_and_with_repeated_inputs(spec: OpSpec, backend: str) -> None:
    """The sample with most tensors, and without gradients the first, give the eager call's values and gradients."""
    _skip_if_unbuilt(backend)
    samples = list(spec.samples(_device(backend), _dtypes(backend, spec)[0]))
    cases = [(samples[0], REPEATED[0])]
    if backend != "reference":
        cases += [(max(samples, key=lambda s: len(s.tensors())), how) for how in REPEATED]
    for sample, (others, mode, compiler) in cases:
        call, tensors = _of_first(sample, others)
        torch._dynamo.reset_code_caches()
        compiled = torch.compile(call, fullgraph=True, dynamic=True, backend=compiler)
        with vf.use_backend(backend, ops=[spec.name]), mode():
            results = []
            for function in (call, compiled):
                outputs = as_tuple(function(spec, *tensors))
                recorded = [o for o in outputs if o.requires_grad]
                inputs = [t for t in tensors if t.requires_grad] if recorded else []
                gradients = torch.autograd.grad(recorded, inputs, recorded, allow_unused=True) if inputs else ()
                results.append([*outputs, *(g for g in gradients if g is not None)])
        for eager, traced in zip(*results, strict=True):
            torch.testing.assert_close(eager, traced, rtol=1e-4, atol=1e-4, equal_nan=True)


@pytest.mark.parametrize("case", [pytest.param(i, id=f"{s.name}-{i.name}") for s in SPECS for i in s.invalid()])
def test_bad_input_raises_the_typed_error(case: Any) -> None:
    with pytest.raises(case.error, match=case.match):
        case.call()


@pytest.mark.parametrize("spec", [pytest.param(s, id=s.name) for s in SPECS])
def test_a_tensor_on_another_device_is_refused(spec: OpSpec) -> None:
    """Kernels take addresses: one of another device would end the process's use of the GPU."""
    for sample in spec.samples(CPU, torch.float32):
        for moved in range(len(sample.tensors())):
            if len(sample.tensors()) > 1:
                position = itertools.count()
                other = sample.map_tensors(lambda t, n=position, m=moved: t.to("meta") if next(n) == m else t)
                with pytest.raises((ValueError, TypeError), match=r"on meta|on cpu"):
                    spec.function(*other.args, **other.kwargs)


@pytest.mark.parametrize("spec", [pytest.param(s, id=s.name) for s in SPECS])
def test_a_backend_asked_for_by_name_runs_or_says_why_not(spec: OpSpec) -> None:
    sample = next(iter(spec.samples(CPU, torch.float32)))
    for backend in _requested.BACKENDS:
        runs = backend in spec.predicates and spec.predicates[backend](sample.tensors()[0]) is None
        with vf.use_backend(backend, ops=[spec.name]):
            if runs:
                spec.function(*sample.args, **sample.kwargs)
            else:
                with pytest.raises(vf.BackendUnavailableError, match=f"{spec.name}.*{backend}"):
                    spec.function(*sample.args, **sample.kwargs)


@pytest.mark.parametrize("spec", [pytest.param(s, id=s.name) for s in SPECS])
def test_docstring_opens_with_the_formula(spec: OpSpec) -> None:
    doc = spec.function.__doc__ or ""
    assert "=" in doc.strip().splitlines()[0], f"{spec.name}: the first line of the docstring states the formula"
    for part in ("Args:", "Returns:", "Raises:", "Source:"):
        assert part in doc, f"{spec.name}: docstring lacks {part}"
