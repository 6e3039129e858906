"""Run one case: values against float64, memory and races, refused launches, the same bits in any order of warps."""

from __future__ import annotations

import functools
import math
import time
import traceback
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import torch

from gpu_emulator import EmulatorError, cuda, triton
from gpu_emulator.ptx import executed
from tests import checks
from tests.emulated import library
from tests.emulated.cases import DTYPES, Case, sample_of, spec_of

SCHEDULES = (1, 2)  # seeds of two orders of warps and blocks
MEMORY_FAULTS = (
    "outside every allowed range", "not aligned", "shared memory", "of local memory", "never written",
)  # fmt: skip


@dataclass
class Result:
    """What a case showed; everything is empty where it passed."""

    case: Case
    wrong: str = ""  # values too far from float64
    changing: str = ""  # outputs that differ between two orders
    raised: str = ""
    refused: str = ""  # the op has no such backend for this call: neither passed nor failed
    problems: list[dict[str, str]] = field(default_factory=list)  # kind, kernel, schedule, what
    seconds: float = 0.0  # of the processor
    instructions: int = 0  # warp instructions
    launched: set[str] = field(default_factory=set)  # kernels that ran
    paths: set[str] = field(default_factory=set)  # kernels with how they ran: a block, blocks, clusters, a whole grid
    executed: dict[str, int] = field(default_factory=dict)  # kernel -> bits of its instructions that ran

    @property
    def kinds(self) -> set[str]:
        return {problem["kind"] for problem in self.problems}

    @property
    def passed(self) -> bool:
        return not (self.wrong or self.changing or self.raised or self.problems)


def _of_room(op: str, kernel: str) -> str:
    """Many rooms have a Triton kernel of one name: `geglu.forward_kernel`."""
    return f"{op}.{kernel}"


def _extent(launch: Any) -> str:
    """How far a launch reaches: one block, blocks apart, clusters, or a grid that meets."""
    if getattr(launch, "cooperative", False):
        return "grid"
    if math.prod(getattr(launch, "cluster", ())) > 1:
        return "clusters"
    return "block" if math.prod(launch.grid) == 1 else "blocks"


class CudaBackend:
    """The project's CUDA library in the emulator."""

    name = "cuda"

    def load(self) -> ModuleType:
        return library.load_cuda()

    @contextmanager
    def run(self, result: Result, schedule: int, **options: Any) -> Iterator[None]:
        with cuda.active(result.case.device, schedule=schedule, **options) as log:
            yield
        ran = [launch for launch in log.launches if not launch.refusal]
        result.launched.update(launch.name for launch in ran)
        result.paths.update(f"{launch.name} {_extent(launch)}" for launch in ran)
        result.instructions += log.total("warp_instructions")
        for launch in log.problems():
            sizes = f"{launch.grid} x {launch.block}, clusters {launch.cluster}, {launch.dynamic_shared_bytes} bytes"
            what = f"{launch.refusal or launch.error} [{sizes}]"
            result.problems.append(
                {"kind": launch.kind, "kernel": launch.name, "schedule": str(schedule), "what": what}
            )

    def kernels(self, vf: ModuleType) -> set[str]:
        """Names of all kernels that were built."""
        return {cuda.demangled(name) for name in cuda.kernels()}

    def executed(self, result: Result) -> dict[str, int]:
        """Bits of the instructions that ran since the last call, by kernel and file."""
        found: dict[str, int] = {}
        for i, (name, handle) in enumerate(cuda.modules(result.case.architecture)):
            if cuda.demangled(name) in result.launched:
                _add_bits(found, f"{cuda.demangled(name)} #{i}", executed(handle, name, forget=True).flags)
        return found


class TritonBackend:
    """The project's Triton kernels, compiled to PTX by the installed Triton."""

    name = "triton"

    def load(self) -> ModuleType:
        return library.load_triton()

    @contextmanager
    def run(self, result: Result, schedule: int, **options: Any) -> Iterator[None]:
        with triton.active(result.case.architecture, schedule=schedule, **options) as log:
            try:
                yield
            except EmulatorError as error:
                text = str(error)
                memory = any(words in text for words in MEMORY_FAULTS)
                kind = "race" if "race" in text else "memory" if memory else "fault"
                kernel = log.launches[-1].name if log.launches else ""
                result.problems.append({"kind": kind, "kernel": kernel, "schedule": str(schedule), "what": text})
                raise
        result.launched.update(_of_room(result.case.op, launch.name) for launch in log)
        # One function serves all dtypes, and each is compiled by itself.
        result.paths.update(
            f"{_of_room(result.case.op, launch.name)} {result.case.dtype} {_extent(launch)}" for launch in log
        )
        result.instructions += sum(launch.report.warp_instructions for launch in log)

    def kernels(self, vf: ModuleType) -> set[str]:
        """Names of all kernels: those with a case for ahead-of-time compilation."""
        return {_of_room(spec.name, case.kernel) for spec in vf.ops.specs() for case in spec.aot()}

    def executed(self, result: Result) -> dict[str, int]:
        """Bits of the pairs of a source line and an opcode that ran since the last call, by kernel and
        dtype.

        A kernel is compiled anew for every combination of constants, so instructions have no number to go by.
        """
        found: dict[str, int] = {}
        for kernel in triton.compiled():
            name = _of_room(result.case.op, kernel.name)
            if name not in result.launched:
                continue
            done = kernel.module.executed(kernel.name, forget=True)
            if any(done.flags):
                pairs, key = _line_and_opcode(kernel.ptx), f"{name} {result.case.dtype}"
                lines = (line for flag, line in zip(done.flags, done.lines) if flag and line)
                bits = {zlib.crc32(pairs[line - 1]) % 65536 for line in lines}
                found[key] = found.get(key, 0) | sum(1 << bit for bit in bits)
        return found


@functools.cache
def _line_and_opcode(ptx: str) -> list[bytes]:
    """Of every line of the PTX: the source line that it comes from, and its opcode."""
    found, source = [], ""
    for text in ptx.splitlines():
        words = text.split()
        if words[:1] == [".loc"]:
            source = " ".join(words[1:3])
        opcode = next((word for word in words if not word.startswith("@")), "")
        found.append(f"{source} {opcode}".encode())
    return found


BACKENDS: dict[str, Callable[[], Any]] = {"cuda": CudaBackend, "triton": TritonBackend}


def _add_bits(found: dict[str, int], kernel: str, flags: bytes) -> None:
    if any(flags):
        found[kernel] = int.from_bytes(flags, "little")


@functools.lru_cache(maxsize=2)
def _references(vf: ModuleType, op: str, group: str, sample: str, dtype: str, device: str) -> tuple[Any, Any, Any]:
    case = Case("", device, dtype, op, group, sample)
    found = sample_of(vf, case)
    return found, *checks.references(spec_of(vf, op), found, DTYPES[dtype])


def _same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    return (
        a.shape == b.shape
        and torch.equal(torch.isnan(a), torch.isnan(b))
        and torch.equal(torch.nan_to_num(a), torch.nan_to_num(b))
    )


def _check_values(vf: ModuleType, backend: Any, result: Result, thorough: bool) -> None:
    case = result.case
    spec, dtype = spec_of(vf, case.op), DTYPES[case.dtype]
    sample, exact, eager = _references(vf, case.op, case.group, case.sample, case.dtype, "")
    runs = []
    with vf.use_backend(case.backend, ops=[spec.name]):
        for schedule in SCHEDULES:
            # Races do not depend on the order, since clocks judge them: one order is enough for them.
            race = {} if thorough or schedule == SCHEDULES[0] else {"racecheck": 0}
            with backend.run(result, schedule, counters=thorough, **race):
                runs.append(checks.run(spec.function, checks.fresh(sample), dtype))
        far = checks.too_far(spec, checks.compare(spec, sample, runs[0], exact, eager), dtype)
        if far and not result.problems:
            with backend.run(result, 0, memcheck=False, racecheck=0, counters=False):
                far = checks.too_far(spec, checks.mean_errors(spec, sample, dtype), dtype)
    result.wrong = "; ".join(far)
    pairs = zip(runs[0][0] + runs[0][1], runs[1][0] + runs[1][1])
    result.changing = ", ".join(str(i) for i, (a, b) in enumerate(pairs) if not _same_bits(a.detach(), b.detach()))


def _guarded(vf: ModuleType, result: Result, work: Callable[[], None]) -> Result:
    start = time.process_time()
    try:
        work()
    except vf.BackendUnavailableError as error:
        result.refused = str(error)
    except EmulatorError as error:
        if not result.problems:
            result.raised = str(error)
    except Exception:  # of any type: a failure of this case, told with the others
        result.raised = traceback.format_exc(limit=-4)
    result.seconds = time.process_time() - start
    return result


def run_case(vf: ModuleType, backend: Any, case: Case, *, thorough: bool = True) -> Result:
    """Values, memory, races, launches and bits of one case.

    Args:
        thorough: look for races in both orders, and count.
    """
    result = Result(case)
    return _guarded(vf, result, lambda: _check_values(vf, backend, result, thorough))


def cover_case(vf: ModuleType, backend: Any, case: Case) -> Result:
    """Which instructions a case executes; nothing is checked."""
    result, spec, dtype = Result(case), spec_of(vf, case.op), DTYPES[case.dtype]

    def work() -> None:
        sample = checks.fresh(sample_of(vf, case))
        unchecked = {"memcheck": False, "racecheck": 0, "counters": False}
        with vf.use_backend(case.backend, ops=[spec.name]), backend.run(result, 0, **unchecked):
            checks.run(spec.function, sample, dtype)

    _guarded(vf, result, work)
    result.executed = backend.executed(result)
    return result
