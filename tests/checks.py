"""How an implementation is held against float64: in units of what eager loses in the same dtype."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from vdiff_fast._spec import OpSpec, Sample


def as_tuple(value: Any) -> tuple[Any, ...]:
    return value if isinstance(value, tuple) else (value,)


def unit_roundoff(dtype: torch.dtype) -> float:
    return torch.finfo(dtype).eps / 2


def relative_error(actual: Tensor, exact: Tensor) -> float:
    """||actual - exact|| / ||exact||, absolute where exact is zero; NaN or Inf on one side only is infinitely far."""
    actual, exact = actual.detach().double().cpu(), exact.detach().double().cpu()
    if actual.shape != exact.shape:
        raise AssertionError(f"shape {tuple(actual.shape)} where the reference has {tuple(exact.shape)}")
    if not torch.equal(torch.isfinite(actual), torch.isfinite(exact)):
        return float("inf")
    finite = torch.isfinite(exact)
    distance = float((actual - exact)[finite].norm())
    scale = float(exact[finite].norm())
    return distance / scale if scale > 0 else distance


def fresh(sample: Sample, dtype: torch.dtype | None = None) -> Sample:
    """The sample with leaf tensors of its own, strides kept; floating tensors converted where a dtype is given."""

    def convert(t: Tensor) -> Tensor:
        target = dtype if dtype is not None and t.is_floating_point() else t.dtype
        copy = t.detach().to(target) if target != t.dtype else t.detach().clone()
        return copy.requires_grad_(t.requires_grad)

    return sample.map_tensors(convert)


def output_gradients(outputs: Sequence[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """Seeded cotangents, the same for every implementation: drawn in float64, rounded to the dtype under test."""
    generator = torch.Generator().manual_seed(1234)
    return [torch.randn(o.shape, generator=generator, dtype=torch.float64).to(dtype) for o in outputs]


def run(
    function: Callable[..., Any], sample: Sample, cotangent_dtype: torch.dtype
) -> tuple[list[Tensor], list[Tensor]]:
    """Outputs and gradients of one call; the cotangents are those of `cotangent_dtype`, converted to each output's."""
    outputs = [o for o in as_tuple(function(*sample.args, **sample.kwargs)) if isinstance(o, Tensor)]
    inputs = sample.differentiable()
    differentiable = [o for o in outputs if o.requires_grad]
    if not inputs or not differentiable:
        return outputs, []
    cotangents = output_gradients(differentiable, cotangent_dtype)
    cotangents = [c.to(device=o.device, dtype=o.dtype) for c, o in zip(cotangents, differentiable)]
    gradients = torch.autograd.grad(differentiable, inputs, cotangents, allow_unused=True)
    return outputs, [torch.zeros_like(i) if g is None else g for g, i in zip(gradients, inputs)]


def assert_as_close_as_eager(spec: OpSpec, sample: Sample, dtype: torch.dtype) -> None:
    """Values and gradients of the public function against float64, within spec.error_multiple of eager's own error."""
    exact_sample = fresh(sample, torch.float64)
    exact = run(spec.reference, exact_sample, dtype)
    eager = run(spec.reference, fresh(sample), dtype)
    fused = run(spec.function, fresh(sample), dtype)
    names = [f"output {i}" for i in range(len(exact[0]))] + [f"gradient {i}" for i in range(len(exact[1]))]
    for name, e, g, f in zip(names, exact[0] + exact[1], eager[0] + eager[1], fused[0] + fused[1]):
        assert f.dtype == g.dtype, f"{spec.name} {sample.name} {name}: dtype {f.dtype}, reference gives {g.dtype}"
        allowed = spec.error_multiple * max(relative_error(g, e), unit_roundoff(dtype))
        error = relative_error(f, e)
        assert error <= allowed, f"{spec.name} {sample.name} {name}: relative error {error:.3e} > {allowed:.3e}"


class CallRecorder(TorchDispatchMode):
    """Keeps every call of our own operators, for opcheck."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, tuple[Any, ...], dict[str, Any]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace.startswith("vdiff_fast"):
            detach = lambda v: v.detach() if isinstance(v, Tensor) else v  # noqa: E731 - used once, below
            self.calls.append((func, tuple(detach(a) for a in args), {k: detach(v) for k, v in (kwargs or {}).items()}))
        return func(*args, **(kwargs or {}))
