"""What the launches of a call move together, through an L2 that they share."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from gpu_emulator import ptx


@contextmanager
def counted() -> Iterator[None]:
    """Launches within, with counters, share an L2 that is empty at the start."""
    ptx.keep_l2(True)
    try:
        yield
    finally:
        ptx.keep_l2(False)
