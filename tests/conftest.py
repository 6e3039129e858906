"""Shared fixtures: poisoned allocations, restored global state, skips that say why."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import distributed
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

import vdiff_fast as vf
from tests import cuda_library as cuda
from vdiff_fast import _library

_BACKGROUND = cuda.Background()


def _repair_interpreter() -> None:
    """Triton 3.6 takes int() of a one-element array for a loop's bound, which numpy 2.4 no longer allows."""
    from triton.runtime import interpreter

    patch = interpreter._patch_lang_tensor

    def repaired(tensor: type, scope: Any) -> None:
        patch(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.squeeze()))

    interpreter._patch_lang_tensor = repaired


def _hasten_interpreter() -> None:
    """Half the interpreter's time: it patches the language anew in every call of a device function, and computes every
    integer twice for an assertion that only its debug mode makes."""
    import triton.language as tl
    from triton.runtime import interpreter

    patch = interpreter._patch_lang

    def once(fn: Any) -> Any:
        languages = [module for module in (tl, tl.core) if any(v is module for v in fn.__globals__.values())]
        if any(tl.core.is_builtin(language.arange) for language in languages):
            return patch(fn)
        return interpreter._LangPatchScope()

    interpreter._patch_lang = once
    builder = interpreter.interpreter_builder
    builder.options = dataclasses.replace(builder.options, sanitize_overflow=False)


if _library.INTERPRETING:
    _repair_interpreter()
    _hasten_interpreter()


def pytest_configure() -> None:
    """Workers share the cores."""
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    torch.set_num_threads(max(1, torch.get_num_threads() // workers))


@pytest.fixture
def one_rank() -> Iterator[DeviceMesh]:
    """A mesh of this process alone, on which FSDP2 shards."""
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    distributed.destroy_process_group()


@pytest.fixture
def two_threads() -> Iterator[None]:
    """For kernels, which cut their work between threads: not one thread because workers share the cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def poisoned_allocations() -> Iterator[None]:
    """Deterministic mode fills every empty tensor with NaN, those of C++ too: a kernel that leaves a hole is seen."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(autouse=True)
def restored_backend() -> Iterator[None]:
    """A test that asks for a backend does not ask for the next one's."""
    with vf.use_backend(None):
        yield


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("gpu") and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
        if item.get_closest_marker("interpreter") and not _library.INTERPRETING:
            item.add_marker(pytest.mark.skip(reason="runs under TRITON_INTERPRET=1 in a process of its own"))
        if item.get_closest_marker("aot") and _library.INTERPRETING:
            item.add_marker(pytest.mark.skip(reason="the interpreter replaces what this compiles"))
    # The library is compiled meanwhile.
    items.sort(key=_needs_cuda_library)


def _needs_cuda_library(item: pytest.Item) -> bool:
    return "cuda_library" in getattr(item, "fixturenames", ())


def pytest_collection_finish(session: pytest.Session) -> None:
    """One worker starts the compiler, if a test that was chosen needs the library."""
    first = os.environ.get("PYTEST_XDIST_WORKER", "gw0") == "gw0"
    if first and not session.config.option.collectonly and any(map(_needs_cuda_library, session.items)):
        _BACKGROUND.start()


def pytest_sessionfinish() -> None:
    _BACKGROUND.stop()


@pytest.fixture(scope="session")
def cuda_library() -> Path:
    """The compiled CUDA library; see tests/cuda_library.py."""
    if reason := cuda.why_not():
        pytest.skip(reason)
    return cuda.path()


@pytest.fixture(params=_library.isas()[::-1] or ["scalar"])
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """Each instruction set that this CPU and this build have."""
    before = _library.isa()
    if before is None:
        pytest.skip(_library.CPU.reason or "")
    try:
        _library.set_isa(request.param)
    except ValueError as error:
        pytest.skip(str(error))
    yield request.param
    _library.set_isa(before)
