"""The CUDA library for the tests that read what nvcc made: compiled once, in the background of the suite.

A build in place leaves CUDA out where there is no GPU. `python -m tests.cuda_library` compiles it into build/cuda; with
`objects` also where the package has a library, because the emulator links the object files anew.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

from gpu_emulator.build import is_newer, locked
from vdiff_fast import _build, _library

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "build" / "cuda"
OBJECTS = FOLDER / "objects"


def why_not() -> str | None:
    """None where the library is there or can be compiled."""
    if shutil.which("nvcc") is None and not _library.CUDA.path.exists():
        return "nvcc is not on PATH and no CUDA library was built"
    return None


def compile_objects() -> Path:
    """The CUDA library and the schemas, up to date, for sm_80 and sm_90a; returns the library.

    Raises:
        vdiff_fast._build.NativeBuildError: a tool is missing, or a source does not compile.
    """
    request = _build.BuildRequest(cuda="1", isas="scalar")
    tools = _build.find_toolchain(request)
    if not tools.usable or tools.nvcc is None:
        raise _build.NativeBuildError(f"missing {', '.join(tools.missing) or 'nvcc'}")
    package = FOLDER / "package"
    with locked(FOLDER):
        targets = ("cuda", "schemas")
        _build.compile_libraries(package, ROOT, OBJECTS, request, tools, cuda=True, targets=targets)
    return package / "_lib" / "libvdiff_fast_cuda.so"


def path() -> Path:
    """The package's own library if it is newer than its sources or nvcc is missing, else one for the tests."""
    sources = [file for pattern in ("*.cu", "*.cuh", "*.h") for file in (ROOT / "csrc").rglob(pattern)]
    if is_newer(_library.CUDA.path, sources) or shutil.which("nvcc") is None:
        return _library.CUDA.path
    return compile_objects()


class Background:
    """Compiles while other tests run; the test that asks first waits for the rest of it."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        if why_not() is None:
            command = [sys.executable, "-m", "tests.cuda_library"]
            quiet = subprocess.DEVNULL  # a failure is raised again by the test that asks for the library
            self._process = subprocess.Popen(command, cwd=ROOT, stdout=quiet, stderr=quiet, start_new_session=True)

    def stop(self) -> None:
        if self._process is not None and self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGTERM)
            self._process.wait()


if __name__ == "__main__":
    print(compile_objects() if "objects" in sys.argv[1:] else path())
