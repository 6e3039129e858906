"""Imports run downward only, and `import vdiff_fast` needs torch and nothing else."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import vdiff_fast

PACKAGE = Path(vdiff_fast.__file__).parent
FLOORS = {
    "ops": 2, "nn": 3, "diffusion": 3, "models": 4, "training": 5, "data": 5, "patch": 5, "codecs": 5, "latents": 5,
    "pretrained": 5, "bench": 5, "cli": 6,
}  # fmt: skip
# Modules beside the folders; _doctor looks at every op, so it stands above them.
TOP_MODULES = {"_doctor": 3, "__init__": 6, "__main__": 6, "_measured": 1}


def _floor(relative: Path) -> int:
    first = relative.parts[0].removesuffix(".py")
    return FLOORS.get(first, TOP_MODULES.get(first, 1))


def _imported_floors(tree: ast.AST) -> list[tuple[str, int]]:
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "vdiff_fast":
            rest = node.module.split(".")[1:]
            names = [rest[0]] if rest else [alias.name for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [a.name.split(".")[1] for a in node.names if a.name.startswith("vdiff_fast.")]
        else:
            continue
        found += [(name, FLOORS.get(name, TOP_MODULES.get(name, 1))) for name in names]
    return found


def test_imports_run_downward_only() -> None:
    upward = []
    for path in PACKAGE.rglob("*.py"):
        relative = path.relative_to(PACKAGE)
        if relative.parts[0] == "_source" or relative == Path("__init__.py"):
            continue
        for name, floor in _imported_floors(ast.parse(path.read_text())):
            if floor > _floor(relative):
                upward.append(f"{relative} (floor {_floor(relative)}) imports {name} (floor {floor})")
    assert not upward, "\n".join(upward)


def _foreign_imports(path: Path, room: str) -> list[str]:
    """What a file of an op room imports of other rooms, beyond their public function and their reference."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.ImportFrom) or not (node.module or "").startswith("vdiff_fast.ops."):
            continue
        other, *rest = (node.module or "").split(".")[2:]
        if other in (room, "_common"):
            continue
        names = rest or [alias.name for alias in node.names if (PACKAGE / "ops" / other / f"{alias.name}.py").exists()]
        found += [f"{path.relative_to(PACKAGE)} imports {other}.{name}" for name in names if name != "reference"]
    return found


def test_a_room_imports_of_another_only_its_reference_or_its_public_function() -> None:
    rooms = [path for path in (PACKAGE / "ops").iterdir() if (path / "spec.py").exists()]
    assert len(rooms) > 10
    foreign = [line for room in rooms for path in room.glob("*.py") for line in _foreign_imports(path, room.name)]
    common = [
        line for path in (PACKAGE / "ops" / "_common").rglob("*.py") for line in _foreign_imports(path, "_common")
    ]
    assert not foreign + common, "\n".join(foreign + common)


def test_no_file_is_over_600_lines() -> None:
    root = PACKAGE.parent
    sources = [p for d in ("vdiff_fast", "csrc", "tests", "benchmarks") for p in (root / d).rglob("*.[pch]*")]
    sources = [p for p in sources if p.suffix in (".py", ".cpp", ".h", ".cu", ".cuh") and "_source" not in p.parts]
    assert len(sources) > 30
    long = {str(p.relative_to(root)): n for p in sources if (n := len(p.read_text().splitlines())) > 600}
    assert not long, long


def test_import_needs_torch_alone() -> None:
    """With every optional package hidden the package imports, and an op runs."""
    code = """
import sys
HIDDEN = ("triton", "av", "typer", "rich", "pydantic", "yaml", "matplotlib", "tensorboard", "PIL", "diffusers",
          "xformers", "sklearn", "skvideo", "tqdm", "safetensors", "scipy")
from importlib.machinery import PathFinder
find = PathFinder.find_spec
PathFinder.find_spec = staticmethod(lambda name, *a, **k: None if name.split(".")[0] in HIDDEN else find(name, *a, **k))
import torch
import vdiff_fast as vf
y = vf.ops.geglu(torch.ones(2, 4))
assert y.shape == (2, 2)
str(vf.doctor())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=PACKAGE.parent, timeout=120)
    assert done.returncode == 0, done.stderr
