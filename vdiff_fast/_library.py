"""Load the native libraries, keep the reason where one did not load, and register fakes and Triton launches.

`libvdiff_fast_cpu.so` holds every schema and the CPU kernels and is loaded first; `libvdiff_fast_cuda.so` adds the CUDA
kernels. Both use torch's stable ABI, so one build serves every torch from 2.11 on. They are looked for in the package's
`_lib`, or in the folder that VDIFF_FAST_LIB_DIR names.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import itertools
import json
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

LIBRARY_DIR = Path(os.environ.get("VDIFF_FAST_LIB_DIR") or Path(__file__).resolve().parent / "_lib")
NAMESPACE = "vdiff_fast"
TRITON_NAMESPACE = "vdiff_fast_triton"
INTERPRETING = os.environ.get("TRITON_INTERPRET", "0") not in ("", "0")


@dataclass(frozen=True)
class Library:
    """One native library: `reason` is None when it is loaded, else why it is not."""

    name: str
    path: Path
    reason: str | None


def build_record() -> dict[str, Any]:
    """What the build wrote about itself; empty where nothing was ever built."""
    try:
        return dict(json.loads((LIBRARY_DIR / "build.json").read_text()))
    except FileNotFoundError:
        return {}


def _missing_reason(name: str) -> str:
    skipped = build_record().get("skipped", {})
    why = skipped.get(name) or skipped.get("native") or "it was never built"
    how = "" if "vdiff-fast build" in why else "; `vdiff-fast build` builds it"
    return f"the native {name} library is not built ({why}){how}"


def _load(name: str, needs: Library | None = None) -> Library:
    path = LIBRARY_DIR / f"libvdiff_fast_{name}.so"
    if needs is not None and needs.reason is not None:
        return Library(name, path, needs.reason)
    if not path.exists():
        return Library(name, path, _missing_reason(name))
    if name == "cuda" and torch.version.cuda is None:
        return Library(name, path, f"this torch ({torch.__version__}) is a CPU build")
    try:
        torch.ops.load_library(str(path))
    except OSError as error:
        return Library(name, path, f"loading {path.name} failed: {error}")
    return Library(name, path, None)


CPU = _load("cpu")
CUDA = _load("cuda", needs=CPU)
_LACKING: list[str] = []


def register_fake(name: str, fake: Callable[..., Any]) -> None:
    """Give a native op its shape function; without its library there is no operator to give one to."""
    if CPU.reason is not None:
        return
    if hasattr(getattr(torch.ops, NAMESPACE), name):
        torch.library.register_fake(f"{NAMESPACE}::{name}", fake)
    else:
        _LACKING.append(name)


def warn_of_an_old_library() -> None:
    """One warning for all the ops that the sources have and the library lacks."""
    # Not an error: rebuilding starts by importing this package.
    if _LACKING:
        lacking = f"it lacks {', '.join(_LACKING)}"
        warnings.warn(f"{CPU.path.name} is older than the sources: run `vdiff-fast build` ({lacking})", stacklevel=3)


def why_no_triton() -> str | None:
    """None where Triton kernels can run: a CUDA device, or Triton's interpreter (TRITON_INTERPRET=1)."""
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed (pip install triton)"
    if not INTERPRETING and not torch.cuda.is_available():
        return "Triton needs a CUDA device (or TRITON_INTERPRET=1)"
    return None


_triton_library = torch.library.Library(TRITON_NAMESPACE, "FRAGMENT")


def _on_its_device(launch: Callable[..., Any]) -> Callable[..., Any]:
    """Triton launches on the current GPU, wherever the tensors are."""

    @functools.wraps(launch)
    def call(*args: Any) -> Any:
        device = next(a.device for a in args if isinstance(a, torch.Tensor))
        if device.index == torch.cuda.current_device():
            return launch(*args)
        with torch.cuda.device(device):
            return launch(*args)

    return call


def define_triton(schema: str, launch: Callable[..., Any], fake: Callable[..., Any]) -> None:
    """Register a Triton launch as an operator: schema, implementation (CPU only in the interpreter) and fake."""
    name = schema.split("(")[0]
    _triton_library.define(schema)
    _triton_library.impl(name, _on_its_device(launch), "CUDA")
    if INTERPRETING:
        _triton_library.impl(name, launch, "CPU")
    torch.library.register_fake(f"{TRITON_NAMESPACE}::{name}", fake, lib=_triton_library)


def isa() -> str | None:
    """Instruction set the CPU kernels use, one of `isas()`; None without the library."""
    if CPU.reason is not None:
        return None
    function = ctypes.CDLL(str(CPU.path)).vdiff_fast_isa
    function.restype = ctypes.c_char_p
    return str(function().decode())


def isas() -> tuple[str, ...]:
    """Instruction sets this build has kernels for, the least capable first; empty without the library."""
    if CPU.reason is not None:
        return ()
    library = ctypes.CDLL(str(CPU.path))
    if not hasattr(library, "vdiff_fast_isa_name"):  # it is older than the sources, which is warned of elsewhere
        return (str(isa()),)
    library.vdiff_fast_isa_name.restype = ctypes.c_char_p
    names = map(library.vdiff_fast_isa_name, itertools.count())
    return tuple(name.decode() for name in itertools.takewhile(lambda name: name is not None, names))


def best_isa() -> str | None:
    """The best instruction set that this CPU runs, whether this build has it or not; None without the library."""
    if CPU.reason is not None:
        return None
    library = ctypes.CDLL(str(CPU.path))
    if not hasattr(library, "vdiff_fast_cpu_isa"):  # it is older than the sources
        return isa()
    library.vdiff_fast_cpu_isa.restype = ctypes.c_char_p
    return str(library.vdiff_fast_cpu_isa().decode())


def idle_memory() -> int:
    """Bytes of memory that outputs of CPU kernels left for later outputs: VDIFF_FAST_KEEP_MB (1024) MB at most.

    The system may take the pages back whenever it needs them; until then they count as this process's.
    Outputs of 1 MB and more lie in such memory, which torch cannot resize (`resize_`, `out=`): clone them first.
    """
    if CPU.reason is not None:
        return 0
    function = ctypes.CDLL(str(CPU.path)).vdiff_fast_idle_memory
    function.restype = ctypes.c_uint64
    return int(function())


def release_memory() -> None:
    """Give the idle memory back to the system now."""
    if CPU.reason is None:
        ctypes.CDLL(str(CPU.path)).vdiff_fast_release_memory()


@contextmanager
def torch_memory() -> Iterator[None]:
    """Large outputs of CPU kernels come from torch's allocator for a while: its profiler sees no other."""
    if CPU.reason is not None:
        yield
        return
    switch = ctypes.CDLL(str(CPU.path)).vdiff_fast_set_own_blocks
    before = switch(0)
    try:
        yield
    finally:
        switch(before)


def set_isa(name: str) -> None:
    """Use a lesser instruction set (tests; the environment variable VDIFF_FAST_ISA does the same at start).

    Raises:
        ValueError: the name is unknown, this CPU lacks it, or there is no native library.
    """
    if CPU.reason is not None:
        raise ValueError(f"cannot set the instruction set: {CPU.reason}")
    if ctypes.CDLL(str(CPU.path)).vdiff_fast_set_isa(name.encode()) != 0:
        raise ValueError(f"instruction set {name!r} is not available here; this CPU runs {isa()!r} or less")
