"""Functions on tensors. An op is one room, a folder with a spec.py; `__all__` of the room names its functions.

A new room is found by its folder, so nothing is added here. Type checkers read `__init__.pyi`, which `make format`
writes from the folders.
"""

from importlib import import_module
from pathlib import Path

# Rooms in the order of the documentation.
ROOMS = tuple(sorted(spec.parent.name for spec in Path(__file__).parent.glob("*/spec.py")))

__all__: list[str] = []
for _room in ROOMS:
    _module = import_module(f"vdiff_fast.ops.{_room}")
    __all__ += _module.__all__
    globals().update({name: getattr(_module, name) for name in _module.__all__})


def specs() -> list:
    """The OpSpec of every room, for tests, benchmarks and the support table."""
    return [import_module(f"vdiff_fast.ops.{room}.spec").SPEC for room in ROOMS]
