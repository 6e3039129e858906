"""Load PTX, launch a kernel of it on arrays in the host's memory, and read what the emulator reports.

>>> module = compile_cuda("saxpy.cu")
>>> report = module.launch("saxpy", grid=4, block=256, arguments=(2.0, x, y, 1000))   # numpy arrays or CPU tensors
>>> report.global_load_sectors
"""

from __future__ import annotations

import ctypes
import functools
import shutil
import struct
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gpu_emulator import build

# In ptxsim.h's order.
OPTIONS = (
    ("memcheck", ctypes.c_int32),
    ("racecheck", ctypes.c_int32),
    ("counters", ctypes.c_int32),
    ("schedule", ctypes.c_uint32),
    ("most_warp_instructions", ctypes.c_uint64),
    ("resident_blocks", ctypes.c_int32),
    ("sampled_clusters", ctypes.c_uint32),
)
COUNTERS = (
    "warp_instructions", "thread_instructions",
    "fma_pipe", "alu_pipe", "fp16_pipe", "sfu_pipe", "tensor_ops", "conversions", "branches", "divergent_branches",
    "imad_wide",
    "global_load_requests", "global_load_sectors", "global_store_requests", "global_store_sectors",
    "global_load_bytes_asked", "global_store_bytes_asked",
    "unique_load_bytes", "unique_store_bytes",
    "dram_load_bytes", "dram_store_bytes",
    "shared_requests", "shared_wavefronts",
    "local_bytes", "atomics", "barriers", "cluster_barriers", "shuffles", "async_copies",
)  # fmt: skip


class OptionsStructure(ctypes.Structure):
    """ptxsim_options."""

    _fields_ = list(OPTIONS)


class ReportStructure(ctypes.Structure):
    """ptxsim_report."""

    _fields_ = [("error", ctypes.c_char * 2048), *((name, ctypes.c_uint64) for name in COUNTERS)]


class KernelInfo(ctypes.Structure):
    """ptxsim_kernel_info."""

    _fields_ = [
        ("parameter_bytes", ctypes.c_uint32),
        ("static_shared_bytes", ctypes.c_uint32),
        ("required_threads", ctypes.c_uint32 * 3),
        ("most_threads", ctypes.c_uint32),
        ("cluster", ctypes.c_uint32 * 3),
        ("parameters", ctypes.c_uint32),
    ]


class EmulatorError(RuntimeError):
    """What the emulator found: kernel, block, thread, PTX line, instruction, and what is wrong."""


@dataclass(frozen=True)
class Options:
    """How a launch is run.

    Attributes:
        memcheck: accesses outside allowed memory, misaligned ones, and reads of shared memory that was never written
            are errors.
        racecheck: 0 none; 1 every data race is an error; 2 two writes of equal values are none.
        counters: count instructions, sectors, bytes, bank conflicts.
        schedule: 0 runs warps in order; another number is the seed of an order of warps and blocks.
        most_warp_instructions: a launch that executes more is an error; 0 stands for 4e9.
        resident_blocks: blocks that run at once; 0 stands for 8, -1 for all.
        sampled_clusters: 0 runs the whole grid; else so many of its clusters (or blocks), neighbours in its middle,
            run, and the counts are scaled to the grid. What the kernel computes is then incomplete.
    """

    memcheck: bool = True
    racecheck: int = 1
    counters: bool = True
    schedule: int = 0
    most_warp_instructions: int = 0
    resident_blocks: int = 0
    sampled_clusters: int = 0

    def structure(self) -> OptionsStructure:
        return OptionsStructure(*(int(getattr(self, name)) for name, _ in OPTIONS))


@dataclass
class Report:
    """What a launch did: an error or none, and the counters by name (also as attributes)."""

    error: str = ""
    counters: dict[str, int] = field(default_factory=dict)

    def __getattr__(self, name: str) -> int:
        try:
            return self.__dict__["counters"][name]
        except KeyError:
            raise AttributeError(name) from None

    @classmethod
    def of(cls, raw: ReportStructure) -> Report:
        return cls(raw.error.decode(errors="replace"), {name: getattr(raw, name) for name in COUNTERS})


@functools.cache
def library() -> ctypes.CDLL:
    """libptxsim.so with its functions' types; built on first use."""
    found = ctypes.CDLL(str(build.library("ptxsim")), mode=ctypes.RTLD_GLOBAL)
    text, size, pointer = ctypes.c_char_p, ctypes.c_size_t, ctypes.c_void_p
    three = ctypes.POINTER(ctypes.c_uint32 * 3)
    found.ptxsim_load.restype = pointer
    found.ptxsim_load.argtypes = [text, text, size]
    found.ptxsim_unload.argtypes = [pointer]
    found.ptxsim_decode_all.argtypes = [pointer, text, size]
    found.ptxsim_kernel_name.restype = text
    found.ptxsim_kernel_name.argtypes = [pointer, ctypes.c_uint32]
    found.ptxsim_kernel.argtypes = [pointer, text, ctypes.POINTER(KernelInfo)]
    found.ptxsim_kernel_layout.argtypes = [pointer, text, pointer, pointer, ctypes.c_uint32]
    found.ptxsim_executed.restype = ctypes.c_uint32
    found.ptxsim_executed.argtypes = [pointer, text, pointer, pointer, ctypes.c_uint32, ctypes.c_int32]
    found.ptxsim_issued.restype = ctypes.c_uint32
    found.ptxsim_issued.argtypes = [pointer, text, pointer, ctypes.c_uint32]
    found.ptxsim_text.restype = text
    found.ptxsim_text.argtypes = [pointer]
    found.ptxsim_source.argtypes = [pointer, ctypes.c_uint32, text, size]
    found.ptxsim_symbol.restype = pointer
    found.ptxsim_symbol.argtypes = [pointer, text, ctypes.POINTER(size)]
    found.ptxsim_launch.argtypes = [
        pointer, text, three, three, three, ctypes.c_uint32, text, size,
        ctypes.POINTER(OptionsStructure), ctypes.POINTER(ReportStructure),
    ]  # fmt: skip
    found.ptxsim_allow.argtypes = [pointer, size, text]
    found.ptxsim_forbid.argtypes = [pointer]
    found.ptxsim_approximation.argtypes = [ctypes.c_uint32]
    found.ptxsim_keep_l2.argtypes = [ctypes.c_int32]
    return found


@dataclass(frozen=True)
class Executed:
    """Of every instruction of a kernel: whether any launch has executed it, and its line in the PTX.

    A line of 0 is of an instruction that the emulator added.
    """

    flags: bytes
    lines: tuple[int, ...]


def executed(handle: int, kernel: str, *, forget: bool = False) -> Executed:
    """What a kernel's launches have executed so far, or since it was forgotten; empty where there was none."""
    count = library().ptxsim_executed(handle, kernel.encode(), None, None, 0, 0)
    flags, lines = (ctypes.c_uint8 * count)(), (ctypes.c_uint32 * count)()
    library().ptxsim_executed(handle, kernel.encode(), flags, lines, count, int(forget))
    return Executed(bytes(flags), tuple(lines))


def issued(handle: int, kernel: str) -> dict[int, int]:
    """Warp instructions by line of the PTX: of all launches of the kernel since this was last asked."""
    lines = executed(handle, kernel).lines
    warps = (ctypes.c_uint64 * len(lines))()
    library().ptxsim_issued(handle, kernel.encode(), warps, len(lines))
    found: dict[int, int] = {}
    for line, count in zip(lines, warps):
        if line:
            found[line] = found.get(line, 0) + count
    return found


def text(handle: int) -> str:
    """The PTX of a loaded module."""
    return library().ptxsim_text(handle).decode()


def source(handle: int, line: int) -> str:
    """File and line of the source that a line of the PTX comes from; empty where the compiler wrote none."""
    text = ctypes.create_string_buffer(512)
    library().ptxsim_source(handle, line, text, len(text))
    return text.value.decode()


def allow(address: int, size: int, name: str) -> None:
    """Kernels under memcheck may touch these bytes."""
    library().ptxsim_allow(address, size, name.encode())


def forbid(address: int) -> None:
    """End what `allow` of this address began."""
    library().ptxsim_forbid(address)


def approximation(seed: int) -> None:
    """How far approximate instructions are off: 0 not at all, 1 up, 2 down, another number by chance, within the
    manual's bounds."""
    library().ptxsim_approximation(seed)


def keep_l2(keep: bool) -> None:
    """The counters' L2: empty now and kept from launch to launch, or empty at the start of every launch."""
    library().ptxsim_keep_l2(int(keep))


@functools.cache
def demangled(name: str) -> str:
    """A C++ kernel's name as the source has it, without its parameters and anonymous namespaces."""
    function = ctypes.CDLL("libstdc++.so.6").__cxa_demangle
    function.restype = ctypes.c_void_p
    status = ctypes.c_int()
    text = function(name.encode(), None, None, ctypes.byref(status))
    if status.value != 0 or not text:
        return name
    plain = ctypes.string_at(text).decode().replace("(anonymous namespace)::", "")
    depth = 0
    for i, letter in enumerate(plain):
        depth += {"<": 1, ">": -1}.get(letter, 0)
        if letter == "(" and depth == 0:
            plain = plain[:i]
            break
    return plain.removeprefix("void ")


def memory_of(value: Any) -> tuple[int, int] | None:
    """Address and bytes of the memory behind a CPU tensor or numpy array; None for anything else."""
    if hasattr(value, "untyped_storage"):
        storage = value.untyped_storage()
        return storage.data_ptr(), storage.nbytes()
    if hasattr(value, "ctypes"):
        owner = value
        while getattr(owner, "base", None) is not None and hasattr(owner.base, "ctypes"):
            owner = owner.base
        return owner.ctypes.data, owner.nbytes
    return None


@contextmanager
def allowed(arrays: Mapping[str, Any]) -> Iterator[None]:
    """The memory of these tensors or arrays, exact to the byte, is all that kernels may touch."""
    ranges: dict[int, tuple[int, str]] = {}
    for name, array in arrays.items():
        memory = memory_of(array)
        if memory is not None and memory[1] > 0:
            _, names = ranges.get(memory[0], (0, ""))
            ranges[memory[0]] = (memory[1], f"{names} {name}".strip())
    for address, (size, name) in ranges.items():
        allow(address, size, name)
    try:
        yield
    finally:
        for address in ranges:
            forbid(address)


def _packed(value: Any, size: int) -> bytes:
    """One argument in the form that its parameter's size asks for."""
    if memory_of(value) is not None:
        address = value.data_ptr() if hasattr(value, "data_ptr") else value.ctypes.data
        return struct.pack("<Q", address)
    if value is None:
        return bytes(size)
    if isinstance(value, float):
        return struct.pack({2: "<e", 4: "<f", 8: "<d"}[size], value)
    if isinstance(value, (bytes, bytearray)) and len(value) == size:
        return bytes(value)
    return (int(value) & (1 << 8 * size) - 1).to_bytes(size, "little")


def _triple(values: int | Sequence[int]) -> ctypes.Array[ctypes.c_uint32]:
    sizes = (values,) if isinstance(values, int) else tuple(values)
    return (ctypes.c_uint32 * 3)(*[*sizes, 1, 1][:3])


class Module:
    """A loaded PTX text.

    Raises:
        EmulatorError: the text cannot be parsed.
    """

    def __init__(self, ptx: str) -> None:
        error = ctypes.create_string_buffer(2048)
        self._handle = library().ptxsim_load(ptx.encode(), error, len(error))
        if not self._handle:
            raise EmulatorError(error.value.decode())

    def __del__(self) -> None:
        if getattr(self, "_handle", None):
            library().ptxsim_unload(self._handle)
            self._handle = None

    def decode_all(self) -> None:
        """Raises EmulatorError at the first instruction that is not known; kernels are else decoded at first use."""
        error = ctypes.create_string_buffer(2048)
        if library().ptxsim_decode_all(self._handle, error, len(error)):
            raise EmulatorError(error.value.decode())

    def kernels(self) -> list[str]:
        """Names of the kernels, as the PTX has them."""
        names: list[str] = []
        while name := library().ptxsim_kernel_name(self._handle, len(names)):
            names.append(name.decode())
        return names

    def find(self, kernel: str) -> str:
        """The PTX's name of a kernel that is given by it or as the source has it: `saxpy`, `reduce<float, 256>`."""
        names = self.kernels()
        if kernel in names:
            return kernel
        found = [name for name in names if demangled(name) == kernel]
        if len(found) != 1:
            raise EmulatorError(f"no kernel {kernel!r}; there are {', '.join(demangled(name) for name in names)}")
        return found[0]

    def info(self, kernel: str) -> KernelInfo:
        info = KernelInfo()
        if library().ptxsim_kernel(self._handle, kernel.encode(), ctypes.byref(info)):
            self.decode_all()
            raise EmulatorError(f"there is no kernel {kernel!r}")
        return info

    def layout(self, kernel: str) -> list[tuple[int, int]]:
        """Offset and bytes of every parameter."""
        count = self.info(kernel).parameters
        offsets, sizes = (ctypes.c_uint32 * count)(), (ctypes.c_uint32 * count)()
        library().ptxsim_kernel_layout(self._handle, kernel.encode(), offsets, sizes, count)
        return list(zip(offsets, sizes))

    def executed(self, kernel: str, *, forget: bool = False) -> Executed:
        """Which instructions of the kernel the launches have executed so far, or since it was forgotten."""
        return executed(self._handle, self.find(kernel), forget=forget)

    def issued(self, kernel: str) -> dict[int, int]:
        """Warp instructions by line of the PTX, of all launches of the kernel since this was last asked."""
        return issued(self._handle, self.find(kernel))

    def source(self, line: int) -> str:
        """File and line of the source that a line of the PTX comes from."""
        return source(self._handle, line)

    def symbol(self, name: str) -> tuple[int, int]:
        """Address and bytes of a variable."""
        size = ctypes.c_size_t()
        address = library().ptxsim_symbol(self._handle, name.encode(), ctypes.byref(size))
        if not address:
            raise KeyError(name)
        return address, size.value

    def _parameters(self, kernel: str, arguments: Sequence[Any]) -> bytes:
        layout = self.layout(kernel)
        if len(arguments) != len(layout):
            raise EmulatorError(f"{demangled(kernel)} takes {len(layout)} arguments, {len(arguments)} were given")
        block = bytearray(sum(layout[-1]) if layout else 0)
        for (offset, size), value in zip(layout, arguments):
            block[offset : offset + size] = _packed(value, size)
        return bytes(block)

    def launch(
        self,
        kernel: str,
        grid: int | Sequence[int],
        block: int | Sequence[int],
        arguments: Sequence[Any] | bytes = (),
        *,
        cluster: Sequence[int] | None = None,
        dynamic_shared_bytes: int = 0,
        options: Options = Options(),
        check: bool = True,
    ) -> Report:
        """Run a kernel to its end or to the first error, which is raised where `check` is set.

        Args:
            kernel: its name in the PTX or in the source.
            arguments: one value per parameter: CPU tensors and numpy arrays for pointers, whose memory is all that the
                kernel may touch, ints, floats, None for a null pointer, bytes for a struct; or the whole parameter
                block as bytes, for which the caller allows the memory.
        """
        name = self.find(kernel)
        given = {} if isinstance(arguments, bytes) else {f"argument {i}": a for i, a in enumerate(arguments)}
        parameters = arguments if isinstance(arguments, bytes) else self._parameters(name, arguments)
        raw = ReportStructure()
        with allowed(given):
            library().ptxsim_launch(
                self._handle, name.encode(), _triple(grid), _triple(block), _triple(cluster) if cluster else None,
                dynamic_shared_bytes, parameters, len(parameters), ctypes.byref(options.structure()),
                ctypes.byref(raw),
            )  # fmt: skip
        report = Report.of(raw)
        if check and report.error:
            raise EmulatorError(report.error)
        return report


def compile_cuda(source: str | Path, *, arch: str = "90a", options: Sequence[str] = ()) -> Module:
    """The kernels of a .cu file, compiled to PTX by nvcc.

    Raises:
        EmulatorError: nvcc is not there or refuses the source; the message has what it said.
    """
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        raise EmulatorError("nvcc is not on PATH: install a CUDA toolkit, or compile to PTX elsewhere and use Module")
    command = [nvcc, "--ptx", f"-arch=compute_{arch}", "-std=c++20", "-lineinfo", *options, "-o", "-", str(source)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise EmulatorError(f"{' '.join(command)}\n{done.stderr[-4000:]}")
    return Module(done.stdout)
