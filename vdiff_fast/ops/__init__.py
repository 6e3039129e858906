"""Functions on tensors. One room per op; adding an op adds its folder and its line here."""

from vdiff_fast.ops.geglu import geglu

# Rooms in the order of the documentation; `vdiff_fast.ops.specs()` loads their spec.py.
ROOMS = ("geglu",)

__all__ = ["geglu"]


def specs() -> list:
    """The OpSpec of every room, for tests, benchmarks and the support table."""
    from importlib import import_module

    return [import_module(f"vdiff_fast.ops.{room}.spec").SPEC for room in ROOMS]
