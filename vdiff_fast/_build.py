"""Build the native libraries with CMake and ninja, and record what was built and why not.

A build in place makes what this machine runs: the CPU kernels for its instruction set and the scalar ones, and the CUDA
library where there is a GPU. A wheel takes everything that the tools here can build. What was left out, and how to get
it, is in the record and in `vdiff-fast doctor`; a later build keeps what an earlier one was asked for.

Standard library only: pip runs this inside an isolated environment that has no torch. `python vdiff_fast/_build.py`
and `vdiff-fast build` run it in place.

Environment:
    VDIFF_FAST_NATIVE      auto (default) | 0 pure Python | 1 fail where a native build is impossible
    VDIFF_FAST_ISAS        auto (default) | native this CPU's best and scalar | cpu all that this CPU runs | all | names
    VDIFF_FAST_CUDA        auto (default: with nvcc and a GPU; for a wheel with nvcc) | 0 | 1 fail where nvcc is missing
    VDIFF_FAST_CUDA_ARCHS  semicolon list for CMAKE_CUDA_ARCHITECTURES, default "80;90a"
    VDIFF_FAST_TORCH       folder of the torch package to build against, or a Python that has it
"""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
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
    isas: str = "auto"
    cuda_archs: str = DEFAULT_CUDA_ARCHS
    torch: str | None = None

    @classmethod
    def from_environment(cls) -> BuildRequest:
        request = cls(
            native=os.environ.get("VDIFF_FAST_NATIVE", "auto"),
            cuda=os.environ.get("VDIFF_FAST_CUDA", "auto"),
            isas=os.environ.get("VDIFF_FAST_ISAS", "auto"),
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
    missing: tuple[str, ...] = ()

    @property
    def usable(self) -> bool:
        return not self.missing


@dataclass
class BuildRecord:
    """Written to `_lib/build.json`; `vdiff-fast doctor` prints it."""

    built: list[str] = field(default_factory=list)
    isas: list[str] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    torch_version: str | None = None
    compiler: str | None = None
    nvcc: str | None = None
    cuda_archs: str | None = None
    system: str = field(default_factory=platform.platform)
    python: str = field(default_factory=platform.python_version)

    def summary(self) -> str:
        built = ", ".join(self.built) or "nothing"
        lines = [f"vdiff_fast native build: built {built}" + (f" ({', '.join(self.isas)})" if self.isas else "")]
        return "\n".join(lines + [f"  {name} left out: {reason}" for name, reason in self.skipped.items()])


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
        missing=tuple(missing),
    )


def has_gpu() -> bool:
    """Whether an NVIDIA driver offers a GPU here; /dev/dxg is that of Windows' subsystem for Linux."""
    shown = [*Path("/dev").glob("nvidia[0-9]*"), *Path("/dev").glob("dxg"), *Path("/proc/driver/nvidia/gpus").glob("*")]
    return bool(shown)


def _wants_cuda(request: BuildRequest, toolchain: Toolchain, record: BuildRecord, here_only: bool) -> bool:
    if request.cuda == "0":
        record.skipped["cuda"] = "VDIFF_FAST_CUDA=0"
    elif toolchain.nvcc is None:
        if request.cuda == "1":
            raise NativeBuildError("VDIFF_FAST_CUDA=1, but nvcc is not on PATH; set CUDACXX to it or use auto")
        record.skipped["cuda"] = "nvcc not found"
    elif request.cuda == "auto" and here_only and not has_gpu():
        record.skipped["cuda"] = "this machine has no GPU; `VDIFF_FAST_CUDA=1 vdiff-fast build` adds it"
    else:
        return True
    return False


def _with_earlier(request: BuildRequest, library_dir: Path) -> BuildRequest:
    """What auto leaves out here, but an earlier build was asked for, is kept up to date."""
    try:
        earlier = json.loads((library_dir / "build.json").read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        earlier = {}
    isas, cuda = request.isas, request.cuda
    if isas == "auto":
        isas = ";".join(["native", *earlier.get("isas", [])])
    if cuda == "auto" and "libvdiff_fast_cuda.so" in earlier.get("built", []):
        cuda = "auto, as before"
    return replace(request, isas=isas, cuda=cuda)


def _run(command: list[str]) -> None:
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode != 0:
        raise NativeBuildError(f"{' '.join(command)}\n{done.stdout[-6000:]}")


def _run_ninja(command: list[str]) -> None:
    """Run a build and say on stderr how far it is: a line that changes in a terminal, else ten lines."""
    environment = os.environ | {"NINJA_STATUS": "[%f/%t] "}
    tail: deque[str] = deque(maxlen=80)
    start, shown, terminal = time.monotonic(), 0, sys.stderr.isatty()
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", env=environment
    )
    assert process.stdout is not None
    for line in process.stdout:
        tail.append(line)
        if found := re.match(r"\[(\d+)/(\d+)\]", line):
            done, total = int(found[1]), int(found[2])
            if terminal or done * 10 // total > shown:
                shown = done * 10 // total
                text = f"vdiff_fast: {done} of {total} files compiled, {time.monotonic() - start:.0f} s"
                print(f"\r{text}" if terminal else text, end="" if terminal else "\n", file=sys.stderr, flush=True)
    if terminal:
        print(file=sys.stderr)
    if process.wait() != 0:
        raise NativeBuildError(f"{' '.join(command)}\n{''.join(tail)[-6000:]}")


def compile_libraries(
    package: Path,
    source: Path,
    build_dir: Path,
    request: BuildRequest,
    tools: Toolchain,
    *,
    cuda: bool,
    line_info: bool = True,
    targets: Sequence[str] = (),
) -> None:
    """Configure `build_dir` and compile `targets` (all by default) into `package/_lib`.

    Raises:
        NativeBuildError: CMake or a compiler failed; the message ends with what it said.
    """
    configure = [
        str(tools.cmake), "-S", str(source), "-B", str(build_dir), "-G", "Ninja",
        "-DCMAKE_BUILD_TYPE=Release",
        f"-DCMAKE_MAKE_PROGRAM={tools.ninja}",
        f"-DCMAKE_CXX_COMPILER={tools.cxx}",
        f"-DVDIFF_TORCH_DIR={tools.torch_dir}",
        f"-DVDIFF_PACKAGE_DIR={package}",
        f"-DVDIFF_ISAS={request.isas}",
        f"-DVDIFF_CUDA={'ON' if cuda else 'OFF'}",
        f"-DVDIFF_LINEINFO={'ON' if line_info else 'OFF'}",
    ]  # fmt: skip
    if cuda:
        configure += [f"-DCMAKE_CUDA_COMPILER={tools.nvcc}", f"-DVDIFF_CUDA_ARCHS={request.cuda_archs}"]
    _run(configure)
    _run_ninja([str(tools.cmake), "--build", str(build_dir), *(f"--target={name}" for name in targets)])


def _build_dir(source: Path, name: str) -> Path:
    """`build/<name>` beside the sources, or a temporary folder where the sources are read-only (an installed wheel)."""
    if os.access(source, os.W_OK):
        return source / "build" / name
    return Path(tempfile.mkdtemp(prefix="vdiff_fast_build_"))


def build(
    package: Path,
    *,
    source: Path,
    request: BuildRequest | None = None,
    toolchain: Toolchain | None = None,
    here_only: bool = True,
) -> BuildRecord:
    """Build the libraries into `package/_lib` and write the record there.

    Args:
        here_only: with auto, leave out what this machine cannot run; a wheel takes everything.

    Raises:
        NativeBuildError: CMake or a compiler failed on what was asked for by name or with 1, or a part that it needs is
            missing. With auto, the record says what was left out and why.
    """
    request = request or BuildRequest.from_environment()
    record = BuildRecord()
    library_dir = package / "_lib"
    library_dir.mkdir(parents=True, exist_ok=True)
    if request.native == "0":
        record.skipped["native"] = "VDIFF_FAST_NATIVE=0"
        # Libraries of an earlier build stay, and so does what is known of them.
        return record if _list_built(package) else _write_record(library_dir, record)
    toolchain = toolchain or find_toolchain(request)
    if not toolchain.usable:
        reason = "missing " + ", ".join(toolchain.missing)
        if "1" in (request.native, request.cuda):
            raise NativeBuildError(f"a native build was asked for, but this machine is {reason}")
        record.skipped["native"] = reason
        return _write_record(library_dir, record)
    record.torch_version, record.compiler = toolchain.torch_version, toolchain.cxx
    insists = "1" in (request.native, request.cuda) or request.isas != "auto"
    if here_only:
        request = _with_earlier(request, library_dir)
    elif request.isas == "auto":
        request = replace(request, isas="all")
    cuda = _wants_cuda(request, toolchain, record, here_only)
    build_dir = _build_dir(source, "native" if here_only else "wheel")
    for with_cuda in (True, False) if cuda else (False,):
        try:
            compile_libraries(package, source, build_dir, request, toolchain, cuda=with_cuda, line_info=here_only)
        except NativeBuildError as error:
            if insists:
                raise
            record.skipped["cuda" if with_cuda else "native"] = str(error)
            continue
        if with_cuda:
            record.nvcc, record.cuda_archs = toolchain.nvcc, request.cuda_archs
        # Without CUDA an older CUDA library may lie there still.
        record.built = [name for name in _list_built(package) if with_cuda or "cuda" not in name]
        _note_instruction_sets(record, build_dir)
        break
    return _write_record(library_dir, record)


def _note_instruction_sets(record: BuildRecord, build_dir: Path) -> None:
    """CMake writes three lines: the sets it built, those it knows, those this CPU runs."""
    built, known, runs = (line.split() for line in (build_dir / "generated" / "isas.txt").read_text().splitlines())
    record.isas = built
    for isa in known:
        if isa not in built:
            why = "not this CPU's best" if isa in runs else "this CPU lacks it"
            how = "cpu" if isa in runs else "all"
            record.skipped[f"instruction set {isa}"] = f"{why}; `VDIFF_FAST_ISAS={how} vdiff-fast build` adds it"


def _list_built(package: Path) -> list[str]:
    return sorted(path.name for path in package.glob("_lib/*.so"))


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
