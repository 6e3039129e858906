"""Triton kernels on CPU tensors: the compiler's own PTX in the emulator, with the launching code unchanged.

>>> from gpu_emulator import triton as emulated
>>> with emulated.active(arch=90) as log:
...     kernel[(4,)](x, y, 1000, BLOCK=256)          # CPU tensors
>>> print([(launch.name, launch.report.global_load_sectors) for launch in log])

A fault ends the launch with EmulatorError. No part of CUDA is needed: no driver, no ptxas, no device.
"""

from __future__ import annotations

import importlib
import os
import struct
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

from gpu_emulator.ptx import EmulatorError, Module, Options, Report, allowed

# Bytes of shared memory that a block may have.
SHARED_MEMORY_LIMIT = {80: 166_912, 86: 101_376, 89: 101_376, 90: 232_448}
FORMATS = {
    "i1": "?", "i8": "b", "i16": "h", "i32": "i", "i64": "q",
    "u1": "?", "u8": "B", "u16": "H", "u32": "I", "u64": "Q",
    "fp16": "e", "fp32": "f", "f32": "f", "fp64": "d",
}  # fmt: skip


@dataclass
class Launch:
    """One launch: what ran, on what, and what the emulator reports."""

    name: str
    grid: tuple[int, int, int]
    num_warps: int
    shared_bytes: int
    constants: dict[str, Any]
    report: Report
    ptx: str = field(repr=False, default="")
    fp_fusion: bool = True


@dataclass
class Log:
    """The launches within `active`."""

    launches: list[Launch] = field(default_factory=list)

    def __iter__(self) -> Iterator[Launch]:
        return iter(self.launches)

    def __len__(self) -> int:
        return len(self.launches)


@dataclass
class _Session:
    options: Options
    log: Log
    keep_ptx: bool


_session: _Session | None = None
_compiled: list[_Kernel] = []


def compiled() -> list[_Kernel]:
    """Every kernel that was compiled for the emulator in this process: name, ptx, module."""
    return list(_compiled)


class _Kernel:
    """What stands for a loaded binary: the module of one compiled kernel."""

    def __init__(self, name: str, ptx: str) -> None:
        self.name, self.ptx = name, ptx
        self.module = Module(ptx)
        self.layout = self.module.layout(name)
        _compiled.append(self)


def _load_binary(name: str, binary: bytes, shared: int, device: int) -> tuple[Any, Any, int, int, int]:
    # There is no driver's module to unload when Triton deletes the kernel, which may be outside `active`.
    return None, _Kernel(name, binary.decode()), 0, 0, 1024


def _flatten(types: Any, values: Any) -> Iterator[tuple[str, Any]]:
    for kind, value in zip(types, values):
        if isinstance(kind, tuple):
            yield from _flatten(kind, value)
        elif kind != "constexpr":
            yield kind, value


def _packed(kind: str, value: Any, size: int) -> bytes:
    if kind.startswith("*"):
        address = 0 if value is None else value if isinstance(value, int) else value.data_ptr()
        return struct.pack("<Q", address)
    if kind == "bf16":
        return struct.pack("<f", value)[2:]
    data = struct.pack("<" + FORMATS[kind], value)
    if len(data) != size:
        raise EmulatorError(f"a parameter of type {kind} has {size} bytes in the PTX")
    return data


class _Launcher:
    """Triton's launcher of one compiled kernel."""

    def __init__(self, src: Any, metadata: Any) -> None:
        self.names = list(src.signature)
        self.types = list(src.signature.values())
        self.constants = {src.fn.arg_names[at[0]]: value for at, value in src.constants.items() if len(at) == 1}
        self.metadata = metadata

    def _parameters(self, kernel: _Kernel, arguments: tuple[Any, ...]) -> bytes:
        block = bytearray(sum(kernel.layout[-1]) if kernel.layout else 0)
        given = [*_flatten(self.types, arguments), ("*scratch", None), ("*profile", None)]
        for (offset, size), (kind, value) in zip(kernel.layout, given, strict=True):
            block[offset : offset + size] = _packed(kind, value, size)
        for need in ("global_scratch_size", "profile_scratch_size"):
            if getattr(self.metadata, need, 0):
                raise EmulatorError(f"{kernel.name} needs {need}, which the emulator does not provide")
        return bytes(block)

    def __call__(
        self, x: int, y: int, z: int, stream: int, kernel: _Kernel, packed: Any, launch_metadata: Any,
        enter_hook: Any, exit_hook: Any, *arguments: Any,
    ) -> None:  # fmt: skip
        assert _session is not None, "a kernel was compiled for the emulator and is launched outside active()"
        parameters = self._parameters(kernel, arguments)
        ctas = getattr(self.metadata, "num_ctas", 1)
        with allowed(dict(zip(self.names, arguments))):
            report = kernel.module.launch(
                kernel.name, (x * ctas, y, z), (32 * self.metadata.num_warps,), parameters,
                cluster=(ctas, 1, 1) if ctas > 1 else None, dynamic_shared_bytes=self.metadata.shared,
                options=_session.options, check=False,
            )  # fmt: skip
        ptx = kernel.ptx if _session.keep_ptx or report.error else ""
        _session.log.launches.append(
            Launch(
                kernel.name,
                (x, y, z),
                self.metadata.num_warps,
                self.metadata.shared,
                self.constants,
                report,
                ptx,
                self.metadata.enable_fp_fusion,
            )
        )
        if report.error:
            raise EmulatorError(report.error)


def _driver(arch: int) -> Any:
    from triton.backends.compiler import GPUTarget

    properties = {
        "max_shared_mem": SHARED_MEMORY_LIMIT.get(arch, 101_376), "multiprocessor_count": 132, "warpSize": 32,
        "max_num_regs": 65_536, "sm_clock_rate": 1_980_000, "mem_clock_rate": 2_619_000, "mem_bus_width": 5120,
    }  # fmt: skip
    return SimpleNamespace(
        get_current_target=lambda: GPUTarget("cuda", arch, 32),
        # Kernels are cached by device: one for each architecture.
        get_current_device=lambda: arch,
        get_current_stream=lambda device: 0,
        launcher_cls=_Launcher,
        utils=SimpleNamespace(
            load_binary=_load_binary,
            unload_module=lambda module: None,
            get_device_properties=lambda device: properties,
        ),
    )


def _cache_folder(version: str) -> str:
    """Apart from the user's own cache, whose binaries are for a device."""
    return os.environ.get("GPU_EMULATOR_TRITON_CACHE") or str(
        Path(tempfile.gettempdir()) / f"gpu_emulator_triton_{version}"
    )


@contextmanager
def active(arch: int = 90, *, keep_ptx: bool = False, **options: Any) -> Iterator[Log]:
    """Triton compiles for this architecture and launches in the emulator.

    Args:
        arch: 80, 86, 89 or 90.
        keep_ptx: the log keeps every launch's PTX, not only that of a launch with an error.
        options: those of gpu_emulator.Options. racecheck is 2 where it is not given: Triton has several threads write
            one value where a layout replicates it, so equal writes are no race.
    """
    global _session
    import triton
    from triton.backends.nvidia.compiler import CUDABackend

    before = (_session, triton.runtime.driver._active, CUDABackend.make_cubin)
    log = Log()
    _session = _Session(Options(**{"racecheck": 2} | options), log, keep_ptx)
    triton.runtime.driver.set_active(_driver(arch))
    CUDABackend.make_cubin = lambda self, src, metadata, opt, capability: src.encode()  # the PTX is what runs
    with triton.knobs.cache.scope():
        triton.knobs.cache.dir = _cache_folder(triton.__version__)
        try:
            yield log
        finally:
            _session, triton.runtime.driver._active, CUDABackend.make_cubin = before


def load(package: str) -> ModuleType:
    """Import a package whose Triton kernels take CPU tensors where TRITON_INTERPRET=1 is set.

    The package takes this process for the interpreter's; Triton itself compiles.
    """
    if package in sys.modules:
        raise RuntimeError(f"{package} is imported already: load() has to come first")
    import triton

    triton.knobs.runtime.interpret = False
    before = os.environ.get("TRITON_INTERPRET")
    os.environ["TRITON_INTERPRET"] = "1"
    try:
        return importlib.import_module(package)
    finally:
        if before is None:
            del os.environ["TRITON_INTERPRET"]
        else:
            os.environ["TRITON_INTERPRET"] = before
