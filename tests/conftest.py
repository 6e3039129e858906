"""Shared fixtures: poisoned allocations, restored global state, skips that say why."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

import vdiff_fast as vf
from vdiff_fast import _library


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
