"""Choose the backend of one call.

`auto` takes the first backend that can run, in the order that was measured on this architecture, else in the order of
preference; a backend asked for by name runs or raises the reason. Every op has one predicate per backend,
`why_not(x, ...) -> str | None`. All of it traces under torch.compile: it reads dtype, shape, device, module globals and
what the thread asked for, nothing else.
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from vdiff_fast import _derivatives, _library, _measured
from vdiff_fast._requested import requested

Predicate = Callable[..., str | None]

# Triton before CUDA C++ until a measurement on the device's generation says otherwise.
DEFAULT_ORDER = {"cpu": ("cpu", "sdpa", "reference"), "cuda": ("triton", "cuda", "sdpa", "reference")}
INTERPRETER_ORDER = ("triton", "cpu", "sdpa", "reference")
NO_CONSTANTS: Mapping[str, Tensor | None] = {}
KERNEL_DTYPES = (torch.float32, torch.bfloat16, torch.float16)

_log = logging.getLogger("vdiff_fast")


class BackendUnavailableError(RuntimeError):
    """A backend was asked for by name and cannot run this call; the message says why."""


def order(op: str, x: Tensor) -> tuple[str, ...]:
    """Backends of `auto` for this call: as measured, else in order of preference."""
    if _library.INTERPRETING:
        return INTERPRETER_ORDER
    preferred = DEFAULT_ORDER.get(x.device.type, ("reference",))
    # Where no table is committed, small ops are spared the look at one.
    measured = _measured.order(op, x) if _measured.TABLES else ()
    if not measured:
        return preferred
    inductor = "reference" if torch.compiler.is_compiling() else _measured.INDUCTOR
    known = tuple(inductor if name == _measured.INDUCTOR else name for name in measured)
    return known + tuple(name for name in preferred if name not in known)


@dataclass(frozen=True)
class Choice:
    """What `choose` answered once: the backend, and the reason against every backend that cannot run the call."""

    op: str
    backend: str
    reasons: dict[str, str]
    elements: int


_observer: ContextVar[list[Choice] | None] = ContextVar("observer", default=None)


def observed(call: Callable[[], object]) -> list[Choice]:
    """Every choice of a backend that this thread makes while `call` runs, for doctor and the benchmarks."""
    choices: list[Choice] = []
    token = _observer.set(choices)
    try:
        call()
        return choices
    finally:
        _observer.reset(token)


def choose(
    op: str,
    predicates: Mapping[str, Predicate],
    x: Tensor,
    *facts: Any,
    constants: Mapping[str, Tensor | None] = NO_CONSTANTS,
) -> str:
    """The backend for this call: the one asked for by name, else the first that can run.

    In forward mode and under the transforms of torch.func it is the reference, also where another one that could run
    was asked for by name: kernels know neither, and the reference's values are theirs to rounding.

    Args:
        constants: inputs, by name, that the kernels have no gradient of; where one is asked for the reference runs.

    Raises:
        BackendUnavailableError: the backend asked for by name cannot run this call.
    """
    chosen = _choose(op, predicates, x, *facts, learned=_learned(constants))
    if chosen != "reference" and _derivatives.transformed():
        chosen = "reference"
        if not torch.compiler.is_compiling():
            _log.debug("%s: reference, for forward mode or a transform of torch.func", op)
    if not torch.compiler.is_compiling() and (choices := _observer.get()) is not None:
        reasons = {name: predicate(x, *facts) for name, predicate in predicates.items()}
        against = {name: reason for name, reason in reasons.items() if reason is not None}
        choices.append(Choice(op, chosen, against, x.numel()))
    return chosen


def _learned(constants: Mapping[str, Tensor | None]) -> str | None:
    """The name of a constant that a gradient is asked for."""
    if not constants or not torch.is_grad_enabled() or _derivatives.transformed():
        return None
    return next((name for name, value in constants.items() if value is not None and value.requires_grad), None)


def _choose(op: str, predicates: Mapping[str, Predicate], x: Tensor, *facts: Any, learned: str | None) -> str:
    wanted = requested(op)
    if wanted is not None:
        if wanted not in predicates:
            raise BackendUnavailableError(f"{op} has no {wanted!r} backend; it has {', '.join(predicates)}")
        reason = predicates[wanted](x, *facts)
        if reason is None and learned is not None and wanted != "reference":
            reason = f"its kernels have no gradient of {learned}, and one is asked for"
        if reason is not None:
            raise BackendUnavailableError(f"{op}: backend {wanted!r} was asked for, but {reason}")
        return wanted
    for name in () if learned is not None else order(op, x):
        if name not in predicates:
            continue
        reason = predicates[name](x, *facts)
        if reason is None:
            return name
        if not torch.compiler.is_compiling():
            _log.debug("%s: not %s: %s", op, name, reason)
    return "reference"


def why_not_reference(x: Tensor, *facts: Any) -> str | None:
    """The reference runs everywhere."""
    return None


def why_not_cpu(x: Tensor, *facts: Any) -> str | None:
    """CPU C++ kernels: the library, a CPU tensor, float64 too."""
    if _CPU_REASON is not None:
        return _CPU_REASON
    if x.device.type != "cpu":
        return f"the tensor is on {x.device.type}"
    if x.dtype not in KERNEL_DTYPES and x.dtype != torch.float64:
        return f"{x.dtype} is not a floating-point dtype it knows"
    return None


def why_not_cuda(x: Tensor, *facts: Any) -> str | None:
    """CUDA C++ kernels: the library and a CUDA tensor."""
    if _CUDA_REASON is not None:
        return _CUDA_REASON
    if x.device.type != "cuda":
        return f"the tensor is on {x.device.type}"
    if x.dtype not in KERNEL_DTYPES:
        return f"{x.dtype} is not one of float32, bfloat16, float16"
    return None


def why_not_triton(x: Tensor, *facts: Any) -> str | None:
    """Triton kernels: Triton, and a CUDA tensor or the interpreter."""
    if _TRITON_REASON is not None:
        return _TRITON_REASON
    if x.device.type != "cuda" and not _library.INTERPRETING:
        return f"the tensor is on {x.device.type}"
    if x.dtype not in KERNEL_DTYPES:
        return f"{x.dtype} is not one of float32, bfloat16, float16"
    return None


# Read once: traced code may read a module global, but not probe files or devices.
_CPU_REASON = _library.CPU.reason
_CUDA_REASON = _library.CUDA.reason
_TRITON_REASON = _library.why_no_triton()

GENERIC_PREDICATES: dict[str, Predicate] = {
    "reference": why_not_reference,
    "cpu": why_not_cpu,
    "triton": why_not_triton,
    "cuda": why_not_cuda,
}


# The module of an op room that launches a backend's kernels. A backend is a line here and in GENERIC_PREDICATES.
KERNEL_MODULES = {"cpu": "native", "triton": "triton", "cuda": "native"}


def _has_kernels(package: str, backend: str) -> bool:
    return importlib.util.find_spec(f"{package}.{KERNEL_MODULES[backend]}") is not None


def predicates(
    package: str, wrap: Callable[[Predicate], Predicate] | None = None, **special: Predicate
) -> dict[str, Predicate]:
    """The predicates of an op room: of the reference, and the generic one of every backend whose kernels it has.

    Args:
        package: the room's `__package__`.
        wrap: applied to every generic predicate but the reference's, where the room asks it a question of its own.
        special: predicates by the name of the backend, in place of the generic ones or beside them.
    """
    generic = {name: GENERIC_PREDICATES[name] for name in KERNEL_MODULES if _has_kernels(package, name)}
    if wrap is not None:
        generic = {name: wrap(predicate) for name, predicate in generic.items()}
    return {"reference": why_not_reference} | generic | special


def kernel_modules(package: str) -> dict[str, ModuleType]:
    """The modules of an op room that launch kernels here, by backend.

    Triton is imported only where it can run, so a CPU process never pays for it.
    """
    runs = {"cpu": _CPU_REASON is None, "cuda": _CPU_REASON is None, "triton": _TRITON_REASON is None}
    return {
        backend: importlib.import_module(f"{package}.{module}")
        for backend, module in KERNEL_MODULES.items()
        if runs[backend] and _has_kernels(package, backend)
    }


def autocast_dtype(x: Tensor) -> torch.dtype | None:
    """What autocast computes in on the device of x: None where it is off, and on a device without it (meta)."""
    device = x.device.type
    if not torch.amp.is_autocast_available(device) or not torch.is_autocast_enabled(device):
        return None
    return torch.get_autocast_dtype(device)


def call_reference(function: Callable[..., Any], x: Tensor, *args: Any, **kwargs: Any) -> Any:
    """Run a reference outside autocast, which would change its dtype: every backend keeps the input's."""
    if autocast_dtype(x) is not None:
        with torch.autocast(x.device.type, enabled=False):
            return function(x, *args, **kwargs)
    return function(x, *args, **kwargs)


def _distinct(args: tuple[Any, ...]) -> list[Any]:
    """The arguments, a tensor that came before as a view of it: traced Functions take no tensor twice."""
    found: list[Any] = []
    for value in args:
        repeated = isinstance(value, Tensor) and any(value is other for other in found)
        found.append(value.view_as(value) if repeated else value)
    return found


def apply(function: type[torch.autograd.Function], *args: Any) -> Any:
    """function.apply(*args), every argument given, without what costs a small call most of its time.

    `apply` binds the arguments to forward's signature anew at every call; and where autograd does not follow, forward
    alone is enough. In traced code it has to be forward alone: there `apply` without a gradient passes a forward of
    variable arguments the wrong ones.
    """
    if not torch.is_grad_enabled() or not any(isinstance(a, Tensor) and a.requires_grad for a in args):
        return function.forward(*args)
    if torch.compiler.is_compiling():
        return function.apply(*_distinct(args))
    return super(torch.autograd.Function, function).apply(*args)  # type: ignore[misc]  # of its C++ base
