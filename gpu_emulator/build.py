"""Builds the emulator's libraries with CMake where they are missing or older than their sources: seconds, once.

    python -m gpu_emulator

Environment:
    GPU_EMULATOR_BUILD   the folder for them; default: build/gpu_emulator beside this package
"""

from __future__ import annotations

import fcntl
import functools
import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SOURCES = Path(__file__).resolve().parent


class BuildError(RuntimeError):
    """A library of the emulator cannot be built; the message says what is missing or what the compiler said."""


def folder() -> Path:
    return Path(os.environ.get("GPU_EMULATOR_BUILD") or SOURCES.parent / "build" / "gpu_emulator").resolve()


def torch_folder() -> Path | None:
    """Where the torch package lies; torch is not imported."""
    found = importlib.util.find_spec("torch")
    return Path(found.origin).parent if found is not None and found.origin is not None else None


def _program(name: str) -> str | None:
    """This interpreter's environment before the system: pip brings a newer CMake than some systems have."""
    beside = Path(sys.executable).parent / name
    return str(beside) if beside.is_file() else shutil.which(name)


@contextmanager
def locked(build: Path) -> Iterator[None]:
    """One process at a time: test workers start together."""
    build.mkdir(parents=True, exist_ok=True)
    with open(build / "lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def run(command: list[str]) -> None:
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode != 0:
        raise BuildError(f"{' '.join(command)}\n{done.stdout[-6000:]}")


def is_newer(library: Path, sources: list[Path]) -> bool:
    """Whether the library is there and was made after the last change of these files."""
    return library.exists() and library.stat().st_mtime >= max(path.stat().st_mtime for path in sources)


def _configure_and_build(build: Path) -> None:
    cmake, ninja = _program("cmake"), _program("ninja")
    if cmake is None:
        raise BuildError("cmake is not on PATH (pip install cmake)")
    torch = torch_folder()
    configure = [cmake, "-S", str(SOURCES), "-B", str(build), f"-DGPU_EMULATOR_TORCH_DIR={torch or ''}"]
    if ninja is not None:
        configure += ["-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}"]
    run(configure)
    run([cmake, "--build", str(build), "--parallel", str(os.cpu_count() or 1)])
    (build / "built").touch()


@functools.cache
def libraries() -> Path:
    """The folder of the libraries, which are up to date on return.

    Raises:
        BuildError: there is no CMake or no C++20 compiler, or a compilation failed.
    """
    build = folder()
    sources = [*SOURCES.glob("c*/*.cpp"), *SOURCES.glob("c*/*.h"), SOURCES / "CMakeLists.txt"]
    with locked(build):
        if not is_newer(build / "built", sources):
            _configure_and_build(build)
    return build


def library(name: str) -> Path:
    """One of ptxsim, cudasim, cudasim_torch.

    Raises:
        BuildError: the library needs a CUDA toolkit (its headers) or torch, and there is none.
    """
    path = libraries() / f"lib{name}.so"
    if not path.exists():
        needs = {"cudasim": "a CUDA toolkit (nvcc)", "cudasim_torch": "a CUDA toolkit (nvcc) and torch"}
        raise BuildError(f"{path.name} was not built: it needs {needs.get(name, 'a C++20 compiler')}")
    return path
