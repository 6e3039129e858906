"""Run a benchmark case in the emulator: which kernels it launches, what they issue and touch."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from benchmarks.binaries import Usage
from benchmarks.gpu_model import sass
from benchmarks.gpu_model.counts import Counts, count
from gpu_emulator import cuda, ptx, triton
from tests.emulated import library

# Twice: what the second run touches beyond the first is what one more cluster costs.
SAMPLED_CLUSTERS = (16, 64)


@dataclass(frozen=True)
class Launched:
    """One kernel of a call: all of its launches together."""

    kernel: str
    launches: int
    blocks: int
    threads: int
    shared_bytes: int
    read_bytes: float
    written_bytes: float
    shared_wavefronts: int
    requests: int
    counts: Counts
    usage: Usage


class Zeros(TorchFunctionMode):
    """Random numbers are zeros: nothing that is counted depends on values, and drawing takes seconds."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        options = dict(kwargs or {})
        if function in (torch.randn, torch.rand):
            options.pop("generator", None)
            return torch.zeros((), **options).expand(*args)
        return function(*args, **options)


def load(backend: str) -> ModuleType:
    """vdiff_fast with this backend's kernels in the emulator; once per process, before anything imports it."""
    return library.load_cuda() if backend == "cuda" else library.load_triton()


@contextmanager
def watched(backend: str, architecture: int, sampled: int) -> Iterator[list[Any]]:
    options = {"memcheck": False, "racecheck": 0, "sampled_clusters": sampled}
    found: list[Any] = []
    if backend == "cuda":
        with cuda.active("h200" if architecture == 90 else "a100", **options) as log:
            yield found
        found += log.launches
    else:
        with triton.active(architecture, keep_ptx=True, **options) as log:
            yield found
        found += log.launches


def run(vf: ModuleType, backend: str, op: str, architecture: int, call: Callable[[], Any]) -> list[Launched]:
    """The kernels that `call` launches, in the order of their first launches.

    Raises:
        RuntimeError: a launch failed, or the op launched nothing.
    """
    runs = []
    for sampled in SAMPLED_CLUSTERS:
        _forget(backend, architecture)
        with vf.use_backend(backend, ops=[op]), watched(backend, architecture, sampled) as launches:
            call()
        runs.append(launches)
    if not launches:
        raise RuntimeError(f"{op} launched no kernel of backend {backend}")
    read = _read_cuda if backend == "cuda" else _read_triton
    fewer = _by_kernel(runs[0])
    return [_together(fewer[key], group, *read(group, architecture)) for key, group in _by_kernel(launches).items()]


def _forget(backend: str, architecture: int) -> None:
    if backend == "cuda":
        for name, handle in cuda.modules(architecture):
            ptx.issued(handle, name)
    else:
        for kernel in triton.compiled():
            kernel.module.issued(kernel.name)


def _by_kernel(launches: list[Any]) -> dict[str, list[Any]]:
    """A Triton kernel's text differs between specialisations."""
    found: dict[str, list[Any]] = defaultdict(list)
    for launch in launches:
        if error := getattr(launch, "error", "") or getattr(launch, "refusal", ""):
            raise RuntimeError(error)
        found[getattr(launch, "ptx", "") or launch.kernel].append(launch)
    return found


def _read_cuda(group: list[Any], architecture: int) -> tuple[str, Counts, Usage]:
    name = group[0].kernel
    for kernel, handle in cuda.modules(architecture):
        if kernel != name:
            continue
        issued = ptx.issued(handle, kernel)
        if any(issued.values()):
            suffix = "90a" if architecture == 90 else str(architecture)
            text = ptx.text(handle)
            assembly = sass.assemble(text, kernel, set(issued), suffix, sass.toolkit_ptxas())
            return cuda.demangled(name), count(text, assembly, issued), assembly.usage
    raise RuntimeError(f"{name} was launched and has issued nothing")


def _read_triton(group: list[Any], architecture: int) -> tuple[str, Counts, Usage]:
    launch = group[0]
    # Triton may have loaded the same text more than once.
    issued: Counter[int] = Counter()
    for kernel in triton.compiled():
        if kernel.ptx == launch.ptx:
            issued.update(kernel.module.issued(kernel.name))
    suffix = "90a" if architecture == 90 else str(architecture)
    ptxas = sass.triton_ptxas(architecture, launch.fp_fusion)
    assembly = sass.assemble(launch.ptx, launch.name, set(issued), suffix, ptxas)
    return launch.name, count(launch.ptx, assembly, issued), assembly.usage


def _counters(launch: Any) -> dict[str, int]:
    return launch.counters if hasattr(launch, "counters") else launch.report.counters


def _clusters(launch: Any) -> int:
    cluster = getattr(launch, "cluster", (1, 1, 1))
    return math.prod(launch.grid) // max(1, math.prod(cluster))


def _distinct_bytes(fewer: Any, more: Any, counter: str) -> float:
    """Of a whole grid: what the larger sample touched, and for each other cluster what one more touches on average.

    A sample's count is scaled to the grid; neighbours that read the same vector have it once in each sample.
    """
    clusters = _clusters(more)
    few, many = SAMPLED_CLUSTERS
    if clusters <= many or getattr(more, "cooperative", False):
        return _counters(more)[counter]
    first, second = _counters(fewer)[counter] * few / clusters, _counters(more)[counter] * many / clusters
    return second + max(0.0, second - first) / (many - few) * (clusters - many)


def _together(fewer: list[Any], group: list[Any], name: str, counts: Counts, usage: Usage) -> Launched:
    first = group[0]
    threads = first.num_warps * 32 if hasattr(first, "num_warps") else math.prod(first.block)
    shared = (
        first.shared_bytes if hasattr(first, "shared_bytes") else first.static_shared_bytes + first.dynamic_shared_bytes
    )
    read, written = (
        sum(_distinct_bytes(a, b, f"unique_{kind}_bytes") for a, b in zip(fewer, group, strict=True))
        for kind in ("load", "store")
    )
    return Launched(
        kernel=name, launches=len(group), blocks=math.prod(first.grid), threads=threads, shared_bytes=shared,
        read_bytes=read, written_bytes=written,
        shared_wavefronts=sum(_counters(launch)["shared_wavefronts"] for launch in group),
        requests=sum(
            _counters(launch)[f"global_{kind}_requests"] for launch in group for kind in ("load", "store")
        ), counts=counts, usage=usage,
    )  # fmt: skip
