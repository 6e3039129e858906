"""The package with emulated kernels: its compiled CUDA objects linked anew, or Triton's launches redirected."""

from __future__ import annotations

import importlib
import json
import os
import pkgutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from gpu_emulator import build, cuda, triton

ROOT = Path(__file__).resolve().parents[2]
NATIVE = ROOT / "build" / "cuda" / "objects"
FOLDER = ROOT / "build" / "emulated"


def compiled_objects() -> list[Path]:
    """What nvcc makes of the CUDA sources, and the compiler of the operators' schemas; compiled where they are stale.

    Raises:
        vdiff_fast._build.NativeBuildError: nvcc or a compiler is missing, or refuses a source.
    """
    # In a process of its own: this one must not have imported the package yet.
    build.run([sys.executable, "-m", "tests.cuda_library", "objects"])
    outputs = [Path(e["output"]) for e in json.loads((NATIVE / "compile_commands.json").read_text()) if "output" in e]
    objects = [NATIVE / o for o in outputs if "cuda.dir" in o.parts or o.name == "schema.cpp.o"]
    lacking = [o for o in objects if not o.exists()]
    if lacking or not any(o.name.endswith(".cu.o") for o in objects):
        raise FileNotFoundError(f"{NATIVE} lacks compiled objects: {lacking[:3]}")
    return objects


def link() -> Path:
    """The folder of the emulated library, which stands where the package looks for its CPU library."""
    stand_in = Path(__file__).with_name("cpu_library.cpp")
    library = FOLDER / "libvdiff_fast_cpu.so"
    emulator = [build.library("cudasim"), build.library("cudasim_torch")]
    sources = [path for path in (ROOT / "csrc").rglob("*") if path.is_file()]
    with build.locked(FOLDER):
        if not build.is_newer(library, [*sources, stand_in, *emulator]):
            cuda.link([*compiled_objects(), stand_in, "-fPIC"], library, torch=True)
    return FOLDER


class _OnCuda:
    """A CPU tensor as a predicate sees it, on a CUDA device."""

    def __init__(self, tensor: Any) -> None:
        self._tensor = tensor
        self.device = torch.device("cuda")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tensor, name)

    def new_empty(self, *arguments: Any, **options: Any) -> _OnCuda:
        return _OnCuda(self._tensor.new_empty(*arguments, **options))


def _on_cuda(predicate: Callable[..., str | None]) -> Callable[..., str | None]:
    """The package's own predicate of backend cuda, for which CPU tensors are on a CUDA device."""

    def why_not(*tensors: Any) -> str | None:
        return predicate(*(_OnCuda(t) if isinstance(t, torch.Tensor) else t for t in tensors))

    return why_not


def load_cuda(folder: Path | None = None) -> ModuleType:
    """vdiff_fast, whose backend "cuda" runs its own host code and PTX in the emulator, on CPU tensors.

    Args:
        folder: of a library that is linked already.
    """
    if "vdiff_fast" in sys.modules:
        raise RuntimeError("vdiff_fast is imported already, with other libraries")
    cuda.own_torch_memory()
    os.environ["VDIFF_FAST_LIB_DIR"] = str(folder or link())
    vf = importlib.import_module("vdiff_fast")
    if vf._library.CPU.reason is not None:
        raise RuntimeError(vf._library.CPU.reason)
    importlib.import_module("vdiff_fast._dispatch")._CUDA_REASON = None
    for room in pkgutil.iter_modules(vf.ops.__path__, "vdiff_fast.ops."):
        if importlib.util.find_spec(f"{room.name}.api") is None:
            continue
        predicates = importlib.import_module(f"{room.name}.api").PREDICATES
        if "cuda" in predicates:
            predicates["cuda"] = _on_cuda(predicates["cuda"])
    return vf


def load_triton() -> ModuleType:
    """vdiff_fast, whose backend "triton" takes CPU tensors within gpu_emulator.triton.active."""
    return triton.load("vdiff_fast")
