"""What the generic tests and benchmarks know of timestep_embedding."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from vdiff_fast._spec import AotCase, BenchCase, Invalid, OpSpec, Sample
from vdiff_fast.ops._common.cases.times import ADM, steps
from vdiff_fast.ops.timestep_embedding import api, reference
from vdiff_fast.ops.timestep_embedding.config import TILE


def samples(device: torch.device, dtype: torch.dtype) -> Iterator[Sample]:
    yield Sample("ddpm", (steps(5, device, dtype), 64))
    yield Sample("adm", (steps(3, device, dtype), 256), ADM)
    yield Sample("odd", (steps(2, device, dtype), 37), {"shift": 0.5, "max_period": 500.0})
    yield Sample("flow", (steps(4, device, dtype, high=1.0), 32), ADM | {"scale": 1000.0})
    yield Sample("one", (steps(1, device, dtype), 320))
    yield Sample("empty", (steps(0, device, dtype), 16))
    yield Sample("strided", (steps(8, device, dtype)[::2], 24))


def invalid() -> Iterator[Invalid]:
    f = api.timestep_embedding
    yield Invalid("rank", lambda: f(torch.zeros(2, 3), 8), ValueError, r"must be \(B,\), got shape \(2, 3\)")
    yield Invalid("bool", lambda: f(torch.zeros(2, dtype=torch.bool), 8), TypeError, "torch.bool")
    yield Invalid("number", lambda: f(3, 8), TypeError, "got int")  # type: ignore[arg-type]
    yield Invalid("dim", lambda: f(torch.zeros(2), 2), ValueError, "dim 2 must be at least 2")
    yield Invalid("period", lambda: f(torch.zeros(2), 8, max_period=-1.0), ValueError, "max_period -1.0")


def aot() -> Iterator[AotCase]:
    for name, time, out, flip in (("steps", "*i64", "*fp32", False), ("times", "*fp32", "*bf16", True)):
        yield AotCase(
            name=f"timestep_embedding_{name}",
            kernel="embedding_kernel",
            signature={"t_ptr": time, "y_ptr": out, "dim": "i32", "tiles": "i32"},
            constants={"RATE": -0.058, "SCALE": 1000.0, "FLIP": flip, "BLOCK": TILE.block},
            divisible=("y_ptr", "dim"),
            num_warps=TILE.num_warps,
        )


def bench() -> Iterator[BenchCase]:
    for batch, dim in ((1, 320), (16, 256), (16, 1280)):

        def sample(device: torch.device, dtype: torch.dtype, batch: int = batch, dim: int = dim) -> Sample:
            return Sample("bench", (steps(batch, device, dtype), dim))

        yield BenchCase(name=f"{batch}x{dim}", sample=sample, bytes_forward=batch * dim * 4)


SPEC = OpSpec(
    name="timestep_embedding",
    module=__package__,
    function=api.timestep_embedding,
    reference=reference.timestep_embedding,
    samples=samples,
    predicates=api.PREDICATES,
    invalid=invalid,
    aot=aot,
    bench=bench,
    summary="sinusoids of time: the DDPM, ADM and diffusers conventions",
)
