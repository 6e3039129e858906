"""What the model knows of a GPU."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Machine:
    """Rates of one GPU. Rates "per clock" are per multiprocessor, in lanes unless another unit is said.

    Attributes:
        copy_bytes_per_second: what a copy from device memory to device memory moves, reads plus writes.
        bytes_in_flight: of loads, per multiprocessor, that this rate needs (Little's law: rate x latency).
        issue_per_clock: warp instructions.
        alu: integer additions, logic, comparisons, permutations, and minima, maxima and selections of floats.
        imad: integer products.
        special: reciprocals, roots, exponentials, logarithms, sines, and conversions that leave the float32 units.
        double: additions and products in float64.
        shared_wavefronts: 128 bytes each.
        tensor_fma: bf16 products and additions of `mma`.
        memory_efficiency, issue_efficiency: what real kernels reach of the two rates.
        launch_seconds: between the end of one kernel and the start of the next.
        l2_bytes: of what one launch leaves there, the next finds.
    """

    name: str
    architecture: int
    multiprocessors: int
    clock: float
    copy_bytes_per_second: float
    l2_bytes: float
    bytes_in_flight: float = 40e3
    issue_per_clock: float = 4
    alu: float = 64
    imad: float = 64
    special: float = 16
    double: float = 64
    shared_wavefronts: float = 1
    tensor_fma: float = 1270
    registers: int = 65536
    shared_bytes: int = 228 * 1024
    warps: int = 64
    blocks: int = 32
    memory_efficiency: float = 0.92
    issue_efficiency: float = 0.85
    launch_seconds: float = 2e-6

    @property
    def clocks_per_second(self) -> float:
        """Of all multiprocessors."""
        return self.multiprocessors * self.clock


# Copy rates: measured on an H200; of the others the data sheet's bandwidth times the H200's ratio of the two, 0.9.
MACHINES = {
    machine.name: machine
    for machine in (
        Machine("h200", 90, 132, 1.755e9, 4.3e12, 40e6),
        Machine("h100", 90, 132, 1.755e9, 3.0e12, 40e6),
        Machine("a100", 80, 108, 1.41e9, 1.8e12, 30e6, shared_bytes=164 * 1024, bytes_in_flight=20e3, double=32),
    )
}
