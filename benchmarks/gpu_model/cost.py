"""Times of a call on a machine, from what its kernels issue and move."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.gpu_model.capture import Launched
from benchmarks.gpu_model.machine import Machine


@dataclass(frozen=True)
class Prediction:
    """One kernel on one machine. Times in seconds.

    Attributes:
        times: by resource: what the kernel would take if it were bound by this one alone.
        blocks_per_multiprocessor: that fit by threads, registers and shared memory.
        bytes_in_flight: of loads, per multiprocessor.
    """

    times: dict[str, float]
    blocks_per_multiprocessor: int
    bytes_in_flight: float

    @property
    def binding(self) -> str:
        return max(self.times, key=lambda resource: self.times[resource])

    @property
    def seconds(self) -> float:
        return self.times[self.binding]


def resident_blocks(kernel: Launched, machine: Machine) -> int:
    """Blocks of a kernel that one multiprocessor holds. Registers are given out by 8 a thread, 256 a warp."""
    warps = -(-kernel.threads // 32)
    registers = -(-kernel.usage.registers // 8) * 8 * 32 * warps
    # A block takes 1 KB of shared memory beyond its own.
    shared = kernel.shared_bytes + 1024
    fit = min(machine.warps // warps, machine.registers // registers, machine.shared_bytes // shared, machine.blocks)
    return max(1, fit)


def predict(kernel: Launched, machine: Machine, kept_bytes: float = 0.0) -> Prediction:
    """The times of one kernel, all launches of it.

    Args:
        kept_bytes: that it finds in the L2, where the kernel before it left them.
    """
    counts, clocks = kernel.counts, machine.clocks_per_second
    blocks = resident_blocks(kernel, machine)
    busy = min(1.0, kernel.blocks / machine.multiprocessors)  # a small grid leaves multiprocessors idle
    at_once = min(float(blocks), max(1.0, kernel.blocks / machine.multiprocessors))
    in_flight = counts.in_flight * kernel.threads * at_once
    from_memory = max(0.0, kernel.read_bytes - kept_bytes) + kernel.written_bytes
    reach = min(1.0, in_flight / machine.bytes_in_flight) if counts.in_flight else 1.0
    rate = machine.copy_bytes_per_second * machine.memory_efficiency * reach * (busy if reach < 1 else 1.0)

    def lanes(name: str, per_clock: float) -> float:
        return counts.by_pipe[name] * 32 / (per_clock * clocks * busy)

    times = {
        "memory": from_memory / rate,
        "issue": counts.issued / (machine.issue_per_clock * clocks * busy * machine.issue_efficiency),
        "alu": lanes("alu", machine.alu),
        "integer products": lanes("imad", machine.imad),
        "special functions": lanes("special", machine.special),
        "double": lanes("double", machine.double),
        "shared memory": kernel.shared_wavefronts / (machine.shared_wavefronts * clocks * busy),
        "tensor cores": counts.tensor_fma / (machine.tensor_fma * clocks * busy),
    }
    return Prediction(times, blocks, in_flight)


def predict_call(kernels: Sequence[Launched], machine: Machine) -> tuple[float, list[Prediction]]:
    """Seconds of a call, and its kernels' predictions. Every launch beyond the first adds the machine's gap.

    A kernel finds in the L2 what the one before it read or wrote last, as far as both sizes and the L2 go; so much is
    what a second pass in reverse order reaches at best.
    """
    total, found, left = 0.0, [], 0.0
    for kernel in kernels:
        prediction = predict(kernel, machine, min(left, machine.l2_bytes, kernel.read_bytes))
        found.append(prediction)
        total += prediction.seconds
        left = kernel.read_bytes + kernel.written_bytes
    gaps = sum(kernel.launches for kernel in kernels) - 1
    return total + gaps * machine.launch_seconds, found
