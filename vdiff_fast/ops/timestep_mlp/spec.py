"""What the generic tests and benchmarks know of timestep_mlp."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from vdiff_fast._spec import AotCase, BenchCase, Invalid, OpSpec, Sample, randn
from vdiff_fast.ops._common.cases.times import ADM, steps
from vdiff_fast.ops.timestep_mlp import api, reference
from vdiff_fast.ops.timestep_mlp.config import LARGE, LINEAR, SMALL


def call(
    batch: int, dim: int, hidden: int, out: int, device: torch.device, dtype: torch.dtype, *, grad: bool = True
) -> tuple[torch.Tensor, ...]:
    """t and the weights at torch.nn.Linear's scale."""

    def scaled(shape: tuple[int, ...], fan_in: int, seed: int) -> torch.Tensor:
        return (randn(shape, device, dtype, seed=seed, grad=False) * fan_in**-0.5).requires_grad_(grad)

    return (
        steps(batch, device, dtype),
        scaled((hidden, dim), dim, 1),
        scaled((hidden,), dim, 2),
        scaled((out, hidden), hidden, 3),
        scaled((out,), hidden, 4),
    )


def samples(device: torch.device, dtype: torch.dtype) -> Iterator[Sample]:
    yield Sample("ddpm", call(2, 32, 128, 128, device, dtype))
    yield Sample("adm", call(5, 64, 48, 80, device, dtype), ADM)
    yield Sample("odd", call(3, 17, 33, 21, device, dtype), {"shift": 0.0, "max_period": 100.0})
    yield Sample("many", call(33, 16, 24, 24, device, dtype))
    t, w1, _, w2, _ = call(1, 16, 32, 8, device, dtype)
    yield Sample("no_bias", (t, w1, None, w2, None))
    yield Sample("empty", call(0, 16, 8, 8, device, dtype))
    t, w1, b1, w2, b2 = call(4, 20, 12, 12, device, dtype, grad=False)
    transposed = w1.t().contiguous().t().requires_grad_()
    yield Sample("strided", (t[::2], transposed, b1.requires_grad_(), w2.requires_grad_(), b2.requires_grad_()))


def invalid() -> Iterator[Invalid]:
    f, cpu = api.timestep_mlp, torch.device("cpu")
    t, w1, b1, w2, b2 = call(2, 16, 8, 4, cpu, torch.float32)
    yield Invalid("widths", lambda: f(t, w1, b1, w2[:, :6], b2), ValueError, "w2 takes 6 features but w1 gives 8")
    yield Invalid("bias", lambda: f(t, w1, b2, w2, b2), ValueError, r"b1 must be \(8,\), got shape \(4,\)")
    yield Invalid("rank", lambda: f(t, b1, b1, w2, b2), ValueError, r"w1 must be \(out, in\)")
    yield Invalid("dtypes", lambda: f(t, w1, b1, w2.half(), b2), TypeError, "w2 is torch.float16, w1 is torch.float32")
    yield Invalid("integer", lambda: f(t, w1.long(), b1, w2, b2), TypeError, "w1 must be floating point")
    yield Invalid("time", lambda: f(t[:, None], w1, b1, w2, b2), ValueError, r"timestep_mlp: t must be \(B,\)")


def aot() -> Iterator[AotCase]:
    """Both layers, for a sampling step's batch and for the largest."""
    for samples, weight in ((SMALL, "*fp32"), (LARGE, "*bf16")):
        shared = {"w_ptr": weight, "bias_ptr": weight} | dict.fromkeys(("batch", "rows", "columns", "tiles"), "i32")
        tile = {"SAMPLES": samples, "ROWS": LINEAR.rows, "COLUMNS": LINEAR.columns}
        yield AotCase(
            name=f"timestep_mlp_first_{samples}",
            kernel="first_kernel",
            signature={"t_ptr": "*i64", "pre_ptr": "*fp32"} | shared,
            constants={"RATE": -0.058, "SCALE": 1.0, "FLIP": False} | tile,
            divisible=("w_ptr", "rows", "columns"),
            num_warps=LINEAR.num_warps,
        )
        yield AotCase(
            name=f"timestep_mlp_second_{samples}",
            kernel="second_kernel",
            signature={"pre_ptr": "*fp32", "y_ptr": weight} | shared,
            constants=tile,
            divisible=("w_ptr", "rows", "columns"),
            num_warps=LINEAR.num_warps,
        )


def bench() -> Iterator[BenchCase]:
    for name, batch, dim, hidden in (
        ("svd", 2, 320, 1280),
        ("unet_tiny", 4, 64, 256),
        ("dit_xl", 16, 256, 1152),
        ("unet_train", 16, 320, 1280),
    ):

        def sample(
            device: torch.device, dtype: torch.dtype, batch: int = batch, dim: int = dim, hidden: int = hidden
        ) -> Sample:
            return Sample("bench", call(batch, dim, hidden, hidden, device, dtype))

        yield BenchCase(name=f"{name}_{batch}x{dim}x{hidden}", sample=sample)


SPEC = OpSpec(
    name="timestep_mlp",
    module=__package__,
    function=api.timestep_mlp,
    reference=reference.timestep_mlp,
    samples=samples,
    predicates=api.PREDICATES,
    invalid=invalid,
    aot=aot,
    bench=bench,
    summary="sinusoids, Linear, SiLU, Linear of the time embedding",
)
