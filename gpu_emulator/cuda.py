"""CUDA libraries on the CPU: their own host code and kernels, on a CUDA runtime that launches in the emulator.

>>> from gpu_emulator import cuda
>>> library = cuda.compile_library(["my_ops.cu"], "my_ops.so")   # by nvcc, or cuda.link(objects, ...) of compiled ones
>>> with cuda.active("h200", schedule=7) as log:
...     ctypes.CDLL(str(library)).my_function(...)
>>> for launch in log.launches:
...     print(launch.name, launch.grid, launch.cluster, launch.error, launch.counters["global_load_sectors"])
"""

from __future__ import annotations

import ctypes
import functools
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from gpu_emulator import build, ptx
from gpu_emulator.ptx import COUNTERS, Options, OptionsStructure, ReportStructure, demangled

# Those of cuda_runtime/device.cpp. The small ones are no products: small tensors take large ones' paths on them.
DEVICES = ("h200", "a100", "small", "small80", "plain", "rtx4090", "b200", "rtx5090")
# Functions of torch's C shim that cuda_runtime/torch_shim.cpp replaces.
TORCH_SHIM = (
    "aoti_torch_library_init_impl", "aoti_torch_create_device_guard", "aoti_torch_delete_device_guard",
    "aoti_torch_get_current_cuda_stream",
)  # fmt: skip


class _Launch(ctypes.Structure):
    """cudasim_launch."""

    _fields_ = [
        ("kernel", ctypes.c_char_p),
        ("grid", ctypes.c_uint32 * 3),
        ("block", ctypes.c_uint32 * 3),
        ("cluster", ctypes.c_uint32 * 3),
        ("dynamic_shared_bytes", ctypes.c_uint32),
        ("static_shared_bytes", ctypes.c_uint32),
        ("cooperative", ctypes.c_int32),
        ("architecture", ctypes.c_int32),
        ("status", ctypes.c_int32),
        ("refusal", ctypes.c_char * 256),
        ("seconds", ctypes.c_double),
        ("report", ReportStructure),
    ]


@dataclass(frozen=True)
class Launch:
    """One launch: `refusal` where a driver would not have started it, `error` where the emulator found a fault."""

    kernel: str
    grid: tuple[int, ...]
    block: tuple[int, ...]
    cluster: tuple[int, ...]
    dynamic_shared_bytes: int
    static_shared_bytes: int
    cooperative: bool
    architecture: int
    status: int
    refusal: str
    error: str
    seconds: float
    counters: dict[str, int]

    @property
    def name(self) -> str:
        return demangled(self.kernel)

    @property
    def kind(self) -> str:
        """Empty where it was right, else "launch" (refused), "race", or "memory" (every other fault)."""
        if self.refusal:
            return "launch"
        if not self.error:
            return ""
        return "race" if "race" in self.error else "memory"


def _launch(raw: _Launch) -> Launch:
    return Launch(
        kernel=raw.kernel.decode(),
        grid=tuple(raw.grid),
        block=tuple(raw.block),
        cluster=tuple(raw.cluster),
        dynamic_shared_bytes=raw.dynamic_shared_bytes,
        static_shared_bytes=raw.static_shared_bytes,
        cooperative=bool(raw.cooperative),
        architecture=raw.architecture,
        status=raw.status,
        refusal=raw.refusal.decode(errors="replace"),
        error=raw.report.error.decode(errors="replace"),
        seconds=raw.seconds,
        counters={name: getattr(raw.report, name) for name in COUNTERS},
    )


@dataclass
class Log:
    """The launches since `active` began, as far as they were read: all of them once it ended."""

    launches: list[Launch] = field(default_factory=list)

    def read(self) -> None:
        for i in range(len(self.launches), runtime().cudasim_launch_count()):
            self.launches.append(_launch(runtime().cudasim_launch_at(i).contents))

    def problems(self) -> list[Launch]:
        return [launch for launch in self.launches if launch.kind]

    def total(self, counter: str) -> int:
        return sum(launch.counters[counter] for launch in self.launches)


@functools.cache
def runtime() -> ctypes.CDLL:
    """libcudasim.so, built on first use; a library linked against it finds its symbols here."""
    ptx.library()
    found = ctypes.CDLL(str(build.library("cudasim")), mode=ctypes.RTLD_GLOBAL)
    found.cudasim_launch_count.restype = ctypes.c_uint64
    found.cudasim_launch_at.restype = ctypes.POINTER(_Launch)
    found.cudasim_launch_at.argtypes = [ctypes.c_uint64]
    found.cudasim_kernel_name.restype = ctypes.c_char_p
    found.cudasim_kernel_name.argtypes = [ctypes.c_uint64]
    found.cudasim_kernel_module.restype = ctypes.c_void_p
    found.cudasim_kernel_module.argtypes = [ctypes.c_uint64, ctypes.c_int]
    found.cudasim_set_options.argtypes = [ctypes.POINTER(OptionsStructure)]
    found.cudasim_remember.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    return found


def kernels() -> list[str]:
    """Every kernel of the loaded libraries, as the PTX names it."""
    names: list[str] = []
    while (name := runtime().cudasim_kernel_name(len(names))) is not None:
        names.append(name.decode())
    return names


def modules(architecture: int) -> list[tuple[str, int]]:
    """Every kernel whose PTX for this architecture (80, 90) was needed, with its module's handle for ptx.executed.

    Two files may have a kernel of one name.
    """
    handles = ((name, runtime().cudasim_kernel_module(i, architecture)) for i, name in enumerate(kernels()))
    return [(name, handle) for name, handle in handles if handle]


def own_torch_memory() -> None:
    """From here on torch's CPU allocator tells the emulator of every storage, and new memory is NaN.

    Call it before the first tensor that a kernel shall see.
    """
    runtime()
    ctypes.CDLL(str(build.library("cudasim_torch"))).cudasim_own_torch_memory()


def link(objects: Sequence[str | Path], output: str | Path, *, torch: bool = False) -> Path:
    """A shared library of compiled objects on the emulator's CUDA runtime, whatever runtime they were meant for.

    Args:
        objects: what `nvcc -c` made, with PTX in it (`-gencode arch=compute_90a,code=compute_90a`, or CMake's default).
        torch: the objects register operators through torch's stable ABI; those for CUDA are registered for CPU tensors.

    Raises:
        gpu_emulator.BuildError: the linker refuses.
    """
    names = ["cudasim_torch", "cudasim"] if torch else ["cudasim"]
    libraries = [str(build.library(name)) for name in names]
    # A running process may have the old one mapped: the new one takes its name when it is whole.
    unfinished = Path(output).with_suffix(".new")
    command = ["g++", "-shared", "-o", str(unfinished), *map(str, objects), *libraries]
    if torch:
        folder = build.torch_folder()
        command += [f"-Wl,--wrap={name}" for name in TORCH_SHIM] + [f"{folder}/lib/libtorch_cpu.so"]
    command.append(f"-Wl,-rpath,{build.libraries()}")
    build.run(command)
    return unfinished.replace(output)


def compile_library(
    sources: Sequence[str | Path],
    output: str | Path,
    *,
    archs: Sequence[str] = ("80", "90a"),
    options: Sequence[str] = (),
) -> Path:
    """A shared library of .cu files, host code and PTX, on the emulator's CUDA runtime.

    Raises:
        gpu_emulator.BuildError: nvcc is not on PATH, or refuses the sources.
    """
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        raise build.BuildError("nvcc is not on PATH: install a CUDA toolkit")
    targets = [part for arch in archs for part in ("-gencode", f"arch=compute_{arch},code=compute_{arch}")]
    output = Path(output)
    objects = []
    for source in map(Path, sources):
        objects.append(output.parent / f"{source.stem}.o")
        command = [nvcc, "-c", "-o", str(objects[-1]), str(source), "-std=c++20", "-lineinfo", "-Xcompiler", "-fPIC"]
        build.run([*command, *targets, *options])
    return link(objects, output)


@contextmanager
def active(device: str = "h200", *, sticky: bool = False, dry: bool = False, **options: int | bool) -> Iterator[Log]:
    """Launches run on this emulated device, and every launch is in the log.

    Args:
        device: one of DEVICES.
        sticky: a fault makes every later launch fail, as on a GPU; else it is in the log alone.
        dry: launches are checked and logged, and nothing runs.
        options: those of gpu_emulator.Options.
    """
    library = runtime()
    if library.cudasim_set_device(device.encode()) != 0:
        raise ValueError(f"unknown device {device!r}; choose from {', '.join(DEVICES)}")
    library.cudasim_set_options(ctypes.byref(Options(**options).structure()))  # type: ignore[arg-type]  # by name
    library.cudasim_set_sticky(int(sticky))
    library.cudasim_set_dry(int(dry))
    library.cudasim_reset()
    log = Log()
    try:
        yield log
    finally:
        log.read()
        library.cudasim_reset()
