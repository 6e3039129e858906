"""What runs here and why: versions, devices, libraries, the backend of every op, combinations known to be bad."""

from __future__ import annotations

import importlib.metadata
import platform
import shutil
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from vdiff_fast import _dispatch, _library, _requested, ops
from vdiff_fast._spec import OpSpec
from vdiff_fast._version import __version__

OPTIONAL_PACKAGES = ("triton", "av", "typer", "pydantic", "matplotlib", "tensorboard", "diffusers", "xformers")


@dataclass(frozen=True)
class OpStatus:
    """One op on one device: the backend `auto` takes, and the reason against every other."""

    op: str
    device: str
    chosen: str
    reasons: dict[str, str]


@dataclass(frozen=True)
class DoctorReport:
    """Everything `vdiff-fast doctor` prints; `str(report)` is the text."""

    versions: dict[str, str]
    machine: dict[str, str]
    libraries: dict[str, str]
    ops: tuple[OpStatus, ...]
    warnings: tuple[str, ...]

    def __str__(self) -> str:
        lines = ["vdiff_fast doctor", ""]
        for title, table in (("versions", self.versions), ("machine", self.machine), ("libraries", self.libraries)):
            lines.append(f"{title}:")
            lines += [f"  {name:<17} {value}" for name, value in table.items()]
        lines.append("backend of each op (auto):")
        for status in self.ops:
            others = "; ".join(f"{name}: {reason}" for name, reason in status.reasons.items())
            lines.append(f"  {status.op:<28} {status.device:<5} {status.chosen:<10} {others}".rstrip())
        lines.append("known-bad combinations: " + ("none found" if not self.warnings else ""))
        lines += [f"  ! {warning}" for warning in self.warnings]
        return "\n".join(lines)


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _versions() -> dict[str, str]:
    versions = {"vdiff_fast": __version__, "python": platform.python_version(), "torch": torch.__version__}
    return versions | {name: _version(name) for name in OPTIONAL_PACKAGES}


def _machine() -> dict[str, str]:
    machine = {
        "system": platform.platform(),
        "cpu": f"{platform.machine()}, {torch.get_num_threads()} threads, kernels use {_library.isa() or 'no ISA'}",
        "cuda": "no CUDA device",
        "compiler": shutil.which("g++") or shutil.which("clang++") or "none on PATH",
        "nvcc": shutil.which("nvcc") or "none on PATH",
    }
    if torch.cuda.is_available():
        major, minor = torch.cuda.get_device_capability()
        machine["cuda"] = f"{torch.cuda.get_device_name()} (sm_{major}{minor}), CUDA {torch.version.cuda}"
    return machine


def _libraries() -> dict[str, str]:
    libraries = {lib.name: lib.reason or f"loaded from {lib.path.name}" for lib in (_library.CPU, _library.CUDA)}
    libraries["triton"] = _library.why_no_triton() or "usable"
    record = _library.build_record()
    if record:
        built = ", ".join(record.get("built", [])) or "nothing"
        libraries["build record"] = f"built {built} against torch {record.get('torch_version')}"
        for name, reason in record.get("skipped", {}).items():
            libraries[f"left out: {name}"] = reason.splitlines()[0]
    if _library.CPU.reason is None:
        libraries["instruction sets"] = ", ".join(_library.isas())
    return libraries


def _status(spec: OpSpec, device: str) -> OpStatus:
    """The choice for the op's first contract sample."""
    sample = next(iter(spec.samples(torch.device(device), torch.float32)))
    choice = next(
        c for c in _dispatch.observed(lambda: spec.function(*sample.args, **sample.kwargs)) if c.op == spec.name
    )
    return OpStatus(spec.name, device, choice.backend, choice.reasons)


def _warnings() -> Iterator[str]:
    torch_version = tuple(int(p) for p in torch.__version__.split("+")[0].split(".")[:2])
    if torch_version < (2, 11):
        yield f"torch {torch.__version__} is older than 2.11: the stable-ABI libraries cannot load"
    triton = _version("triton")
    if triton != "not installed" and tuple(int(p) for p in triton.split(".")[:2]) < (3, 6):
        yield f"Triton {triton} is older than 3.6.0, the oldest the kernels are tested with"
    if torch.version.cuda is not None and not torch.cuda.is_available():
        yield f"torch {torch.__version__} has CUDA, but no device is usable: check the driver with nvidia-smi"
    if torch.cuda.is_available() and torch.cuda.get_device_capability() < (8, 0):
        yield "this GPU is older than sm_80: the CUDA kernels are not built for it and bf16 is slow"
    if torch.backends.cpu.get_cpu_capability() == "AVX2":
        yield "this CPU has no AVX-512: torch's bf16 products and convolutions take several times as long as fp32's"
    if _library.best_isa() not in (None, *_library.isas()):
        yield (
            f"the CPU kernels stop at {_library.isas()[-1]}, and this CPU runs {_library.best_isa()}: "
            "run `vdiff-fast build` on this machine"
        )
    if _library.CPU.reason is not None:
        yield f"CPU ops run on the reference: {_library.CPU.reason}"


def doctor() -> DoctorReport:
    """report = versions + machine + libraries + backend per op + known-bad combinations; print it to read it."""
    devices = ["cpu"] + (["cuda"] if torch.cuda.is_available() else [])
    return DoctorReport(
        versions=_versions(),
        machine=_machine(),
        libraries=_libraries(),
        ops=tuple(_status(spec, device) for spec in ops.specs() for device in devices),
        warnings=tuple(_warnings()),
    )


def support_table() -> str:
    """Markdown: op x backend, from the predicates the dispatcher uses."""
    backends = [b for b in _requested.BACKENDS if any(b in spec.predicates for spec in ops.specs())]
    rows = [f"| op | {' | '.join(backends)} | what it is |", "|" + " --- |" * (len(backends) + 2)]
    for spec in ops.specs():
        marks = ["yes" if backend in spec.predicates else "" for backend in backends]
        rows.append(f"| `{spec.name}` | {' | '.join(marks)} | {spec.summary} |")
    return "\n".join(rows)
