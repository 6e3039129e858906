"""Imports run downward only, and `import vdiff_fast` needs torch and nothing else."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import vdiff_fast

PACKAGE = Path(vdiff_fast.__file__).parent
FLOORS = {"ops": 2, "nn": 3, "diffusion": 3, "models": 4, "training": 5, "data": 5, "patch": 5, "bench": 5, "cli": 6}
# Modules beside the folders; _doctor looks at every op, so it stands above them.
TOP_MODULES = {"_doctor": 3, "__init__": 6, "_measured": 1}


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
