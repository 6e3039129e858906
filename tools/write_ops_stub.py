"""Write vdiff_fast/ops/__init__.pyi, which tells type checkers and editors the functions of every op room."""

from __future__ import annotations

import ast
from pathlib import Path

OPS = Path(__file__).parents[1] / "vdiff_fast" / "ops"


def functions(room: Path) -> list[str]:
    """The names in a room's `__all__`, read without importing it."""
    for node in ast.parse((room / "__init__.py").read_text()).body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "__all__":
            return list(ast.literal_eval(node.value))
    raise ValueError(f"{room / '__init__.py'} has no __all__ that names the op's public functions")


def stub() -> str:
    rooms = {spec.parent.name: sorted(functions(spec.parent)) for spec in OPS.glob("*/spec.py")}
    lines = ["# Written by tools/write_ops_stub.py from the rooms' folders; `make format` writes it again.", ""]
    lines += [f"from vdiff_fast.ops.{room} import {', '.join(rooms[room])}" for room in sorted(rooms)]
    everything = sorted(name for names in rooms.values() for name in names)
    lines += ["", "ROOMS: tuple[str, ...]", "__all__ = ["]
    lines += [*(f'    "{name}",' for name in everything), "]", "", "def specs() -> list: ..."]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    (OPS / "__init__.pyi").write_text(stub())
