"""Build the native libraries with CMake and ninja, and record what was built and why not.

Standard library only: pip runs this inside an isolated environment that has no torch. `python -m vdiff_fast._build`
and `vdiff-fast build` run it in place.

Environment:
    VDIFF_FAST_NATIVE      auto (default) | 0 pure Python | 1 fail where a native build is impossible
    VDIFF_FAST_CUDA        auto (default: build if nvcc is found) | 0 | 1 fail where nvcc is missing
    VDIFF_FAST_CUDA_ARCHS  semicolon list for CMAKE_CUDA_ARCHITECTURES, default "80;90a"
    VDIFF_FAST_TORCH       folder of the torch package to build against, or a Python that has it
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass, field
from pathlib import Path

MINIMUM_TORCH = (2, 11)  # the stable-ABI target: 0x020b000000000000
DEFAULT_CUDA_ARCHS = "80;90a"


class NativeBuildError(RuntimeError):
    """VDIFF_FAST_NATIVE=1 or VDIFF_FAST_CUDA=1 asked for a library that could not be built."""


@dataclass(frozen=True)
class BuildRequest:
    """What the user asked for through the environment."""

    native: str = "auto"
    cuda: str = "auto"
    cuda_archs: str = DEFAULT_CUDA_ARCHS
    torch: str | None = None

    @classmethod
    def from_environment(cls) -> BuildRequest:
        request = cls(
            native=os.environ.get("VDIFF_FAST_NATIVE", "auto"),
            cuda=os.environ.get("VDIFF_FAST_CUDA", "auto"),
            cuda_archs=os.environ.get("VDIFF_FAST_CUDA_ARCHS", DEFAULT_CUDA_ARCHS),
            torch=os.environ.get("VDIFF_FAST_TORCH"),
        )
        for name, value in (("VDIFF_FAST_NATIVE", request.native), ("VDIFF_FAST_CUDA", request.cuda)):
            if value not in ("auto", "0", "1"):
                raise NativeBuildError(f"{name}={value!r}: must be auto, 0 or 1")
        return request


@dataclass(frozen=True)
class Toolchain:
    """What this machine can build with; `missing` names each part that is not there."""

    torch_dir: str | None
    torch_version: str | None
    cxx: str | None
    cmake: str | None
    ninja: str | None
    nvcc: str | None
    pybind11_cmake_dir: str | None
    missing: tuple[str, ...] = ()

    @property
    def usable(self) -> bool:
        return not self.missing


@dataclass
class BuildRecord:
    """Written to `_lib/build.json`; `vdiff-fast doctor` prints it."""

    built: list[str] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    torch_version: str | None = None
    compiler: str | None = None
    nvcc: str | None = None
    cuda_archs: str | None = None
    system: str = field(default_factory=platform.platform)
    python: str = field(default_factory=platform.python_version)

    def summary(self) -> str:
        skipped = "; ".join(f"{name} skipped: {reason}" for name, reason in self.skipped.items())
        return f"vdiff_fast native build: built {', '.join(self.built) or 'nothing'}" + (
            f"; {skipped}" if skipped else ""
        )


_PROBE = """
import importlib.util, json, pathlib
spec = importlib.util.find_spec("torch")
root = pathlib.Path(spec.origin).parent
names = {}
exec((root / "version.py").read_text(), names)
print(json.dumps([str(root), str(names["__version__"])]))
"""


def _probe_python(python: str) -> tuple[str, str] | None:
    """Ask an interpreter where its torch is, without importing torch and without pip's overlay on PYTHONPATH."""
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONNOUSERSITE", "PYTHONHOME")}
    try:
        out = subprocess.run([python, "-c", _PROBE], env=environment, capture_output=True, text=True, timeout=60)
    except OSError:
        return None
    if out.returncode != 0:
        return None
    root, version = json.loads(out.stdout.strip().splitlines()[-1])
    return root, version


def _find_torch(request: BuildRequest) -> tuple[str, str] | None:
    """VDIFF_FAST_TORCH, then this interpreter, then the active virtual environment."""
    if request.torch:
        folder = Path(request.torch)
        if (folder / "version.py").is_file():
            names: dict[str, object] = {}
            exec((folder / "version.py").read_text(), names)
            return str(folder), str(names["__version__"])
        return _probe_python(request.torch)
    found = _probe_python(sys.executable)
    if found is None and os.environ.get("VIRTUAL_ENV"):
        found = _probe_python(str(Path(os.environ["VIRTUAL_ENV"]) / "bin" / "python"))
    return found


def _find_program(name: str) -> str | None:
    """Prefer the environment's own program to the system's: a build environment brings a newer cmake."""
    beside = Path(sys.executable).parent / name
    return str(beside) if beside.is_file() else shutil.which(name)


def _pybind11_cmake_dir() -> str | None:
    try:
        import pybind11
    except ImportError:
        return None
    return str(pybind11.get_cmake_dir())


def find_toolchain(request: BuildRequest) -> Toolchain:
    """Look for torch, compilers and build tools; says what is missing and never raises."""
    torch = _find_torch(request)
    cxx = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")
    cmake, ninja = _find_program("cmake"), _find_program("ninja")
    missing = []
    if torch is None:
        missing.append("torch (install torch first, or set VDIFF_FAST_TORCH to the folder of its package)")
    else:
        found = tuple(int(part) for part in torch[1].split("+")[0].split(".")[:2])
        if found < MINIMUM_TORCH:
            missing.append(f"torch >= {'.'.join(map(str, MINIMUM_TORCH))} (found {torch[1]})")
    missing += [name for name, path in (("a C++ compiler", cxx), ("cmake", cmake), ("ninja", ninja)) if not path]
    if sys.platform != "linux":
        missing.append(f"Linux (this is {sys.platform})")
    return Toolchain(
        torch_dir=torch[0] if torch else None,
        torch_version=torch[1] if torch else None,
        cxx=cxx,
        cmake=cmake,
        ninja=ninja,
        nvcc=os.environ.get("CUDACXX") or shutil.which("nvcc"),
        pybind11_cmake_dir=_pybind11_cmake_dir(),
        missing=tuple(missing),
    )


def _wants_cuda(request: BuildRequest, toolchain: Toolchain, record: BuildRecord) -> bool:
    if request.cuda == "0":
        record.skipped["cuda"] = "VDIFF_FAST_CUDA=0"
    elif toolchain.nvcc is None:
        if request.cuda == "1":
            raise NativeBuildError("VDIFF_FAST_CUDA=1, but nvcc is not on PATH; set CUDACXX to it or use auto")
        record.skipped["cuda"] = "nvcc not found"
    else:
        return True
    return False


def _run(command: list[str]) -> None:
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode != 0:
        raise NativeBuildError(f"{' '.join(command)}\n{done.stdout[-6000:]}")


def _configure_and_build(package: Path, source: Path, request: BuildRequest, tools: Toolchain, cuda: bool) -> None:
    build_dir = _build_dir(source)
    configure = [
        str(tools.cmake), "-S", str(source), "-B", str(build_dir), "-G", "Ninja",
        "-DCMAKE_BUILD_TYPE=Release",
        f"-DCMAKE_MAKE_PROGRAM={tools.ninja}",
        f"-DCMAKE_CXX_COMPILER={tools.cxx}",
        f"-DVDIFF_TORCH_DIR={tools.torch_dir}",
        f"-DVDIFF_PACKAGE_DIR={package}",
        f"-DVDIFF_CUDA={'ON' if cuda else 'OFF'}",
        f"-DPython_EXECUTABLE={sys.executable}",
        f"-Dpybind11_DIR={tools.pybind11_cmake_dir or ''}",
    ]  # fmt: skip
    if cuda:
        configure += [f"-DCMAKE_CUDA_COMPILER={tools.nvcc}", f"-DVDIFF_CUDA_ARCHS={request.cuda_archs}"]
    _run(configure)
    _run([str(tools.cmake), "--build", str(build_dir)])


def _build_dir(source: Path) -> Path:
    """`build/native` beside the sources, or a temporary folder where the sources are read-only (an installed wheel)."""
    if os.access(source, os.W_OK):
        return source / "build" / "native"
    return Path(tempfile.mkdtemp(prefix="vdiff_fast_build_"))


def build(
    package: Path,
    *,
    source: Path,
    request: BuildRequest | None = None,
    toolchain: Toolchain | None = None,
) -> BuildRecord:
    """Build the libraries into `package/_lib` and write the record there.

    Raises:
        NativeBuildError: a compiler failed on a library that was asked for with 1, or a needed part is missing.
            With auto, the record says what was left out and why.
    """
    request = request or BuildRequest.from_environment()
    record = BuildRecord()
    library_dir = package / "_lib"
    library_dir.mkdir(parents=True, exist_ok=True)
    if request.native == "0":
        record.skipped["native"] = "VDIFF_FAST_NATIVE=0"
        return _write_record(library_dir, record)
    toolchain = toolchain or find_toolchain(request)
    if not toolchain.usable:
        reason = "missing " + ", ".join(toolchain.missing)
        if "1" in (request.native, request.cuda):
            raise NativeBuildError(f"a native build was asked for, but this machine is {reason}")
        record.skipped["native"] = reason
        return _write_record(library_dir, record)
    record.torch_version, record.compiler = toolchain.torch_version, toolchain.cxx
    cuda = _wants_cuda(request, toolchain, record)
    try:
        _configure_and_build(package, source, request, toolchain, cuda)
    except NativeBuildError as error:
        if "1" in (request.native, request.cuda):
            raise
        record.skipped["cuda" if cuda else "native"] = str(error)
        if cuda:
            _retry_without_cuda(package, source, request, toolchain, record)
        return _write_record(library_dir, record)
    if cuda:
        record.nvcc, record.cuda_archs = toolchain.nvcc, request.cuda_archs
    record.built = _list_built(package)
    return _write_record(library_dir, record)


def _retry_without_cuda(
    package: Path, source: Path, request: BuildRequest, toolchain: Toolchain, record: BuildRecord
) -> None:
    try:
        _configure_and_build(package, source, request, toolchain, cuda=False)
    except NativeBuildError as error:
        record.skipped["native"] = str(error)
    else:
        record.built = _list_built(package)


def _list_built(package: Path) -> list[str]:
    return sorted(path.name for pattern in ("_lib/*.so", "_native*.so") for path in package.glob(pattern))


def _write_record(library_dir: Path, record: BuildRecord) -> BuildRecord:
    (library_dir / "build.json").write_text(json.dumps(asdict(record), indent=1) + "\n")
    return record


def build_in_place() -> BuildRecord:
    """Build into the package this file lies in: from the checkout's csrc/, or from the sources the wheel carries."""
    package = Path(__file__).resolve().parent
    checkout = package.parent
    source = checkout if (checkout / "csrc").is_dir() else package / "_source"
    if not (source / "CMakeLists.txt").is_file():
        raise NativeBuildError(
            f"no C++ sources beside {package}: install from a wheel or a checkout that carries csrc/"
        )
    return build(package, source=source)


if __name__ == "__main__":
    try:
        print(build_in_place().summary())
    except NativeBuildError as failure:
        sys.exit(f"error: {failure}")
