"""Kernels are tested with two threads, whatever the machine."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def _threads(two_threads: None) -> None:
    """See `two_threads`."""
