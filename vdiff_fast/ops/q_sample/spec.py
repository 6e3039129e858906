"""What the generic tests and benchmarks know of q_sample."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch

from vdiff_fast._spec import AotCase, BenchCase, Invalid, OpSpec, Sample, randn
from vdiff_fast.ops._common.cases.drawn_noise import FRAME_TYPES, bench_layouts, channels_last, correlated_cases
from vdiff_fast.ops._common.schedule import Tables, per_sample
from vdiff_fast.ops._common.tiling import DRAW, FLAT, INDEPENDENT, MIXED, PLANES, PLANES_OF_FOUR, PROGRESSIVE
from vdiff_fast.ops.q_sample import api, reference

SHAPES = ((2, 3, 4, 5), (2, 4, 3, 5, 2), (3, 5, 7), (4,), (2, 1, 2, 3, 3), (1, 16, 1, 1, 5), (0, 3, 2, 2), (2, 0, 2, 2))


def _steps(batch: int, device: torch.device) -> torch.Tensor:
    return (torch.arange(batch, device=device) * 4) % 10


def samples(device: torch.device, dtype: torch.dtype) -> Iterator[Sample]:
    schedule, seed = Tables.cosine(10, device), torch.tensor(31, device=device)
    for shape in SHAPES:
        x0, t = randn(shape, device, dtype), _steps(shape[0], device)
        yield Sample("x".join(map(str, shape)), (x0, t, schedule), {"seed": seed})
        if len(shape) > 3:
            yield Sample("x".join(map(str, shape)) + "-cl", (channels_last(x0), t, schedule), {"seed": seed})
    x0, t = randn((2, 3, 4, 5), device, dtype), _steps(2, device)
    given = randn((2, 3, 4, 5), device, dtype, seed=1)
    yield Sample("noise", (x0, t, schedule), {"noise": given})
    yield Sample("noise-fp32-cl", (channels_last(x0), t, schedule), {"noise": given.detach().float()})
    sigma = torch.tensor([0.25, 1.0], device=device)
    yield Sample("flow", (x0, sigma.double(), Tables.flow(10, device)), {"seed": seed})
    yield Sample("flow-steps", (x0, t, Tables.flow(10, device)), {"seed": seed, "sample_offset": 5, "stream": 3})
    for name, video, last, options in correlated_cases():
        x0 = randn(video, device, dtype)
        x0 = channels_last(x0) if last else x0
        yield Sample(name, (x0, _steps(video[0], device), schedule), {"seed": seed, "sample_offset": 2, **options})
    strided = randn((5, 4, 3, 2), device, dtype, grad=False).mT.requires_grad_()
    yield Sample("strided", (strided, _steps(5, device), schedule), {"seed": seed})


def invalid() -> Iterator[Invalid]:
    x0, t, schedule = torch.zeros(2, 3, 4, 4), torch.tensor([1, 9]), Tables.cosine(10)

    def call(x: Any = x0, step: Any = t, tables: Any = schedule, **changes: Any) -> Any:
        return api.q_sample(x, step, tables, **({"seed": 1} | changes))

    yield Invalid("t too large", lambda: call(step=t + 1), ValueError, r"\[0, 10\), got values from 2 to 10")
    yield Invalid("t negative", lambda: call(step=t - 2), ValueError, r"\[0, 10\), got values from -1 to 7")
    yield Invalid("t float", lambda: call(step=t.float()), TypeError, "int64 steps for a variance_preserving")
    yield Invalid("sigma", lambda: call(step=t.float(), tables=Tables.flow(9)), ValueError, r"\[0, 1\], got .* 9.0")
    yield Invalid("t shape", lambda: call(step=t[:1]), ValueError, r"\(B,\) = \(2,\), got \(1,\)")
    yield Invalid("t elsewhere", lambda: call(step=t.to("meta")), ValueError, "t on meta")
    yield Invalid("integer x0", lambda: call(x0.long()), TypeError, "x0 must be floating point, got torch.int64")
    yield Invalid("scalar x0", lambda: call(x0[0, 0, 0, 0]), ValueError, "batch axis")
    yield Invalid("no noise", lambda: call(seed=None), ValueError, "noise= or seed=, got neither")
    yield Invalid("two noises", lambda: call(noise=x0), ValueError, "noise= or seed=, got both")
    yield Invalid("noise shape", lambda: call(seed=None, noise=x0[:1]), ValueError, r"noise has shape \(1, 3, 4, 4\)")
    yield Invalid("noise dtype", lambda: call(seed=None, noise=x0.long()), TypeError, "noise must be floating point")
    yield Invalid("seed", lambda: call(seed="1"), TypeError, "seed must be .* got str")
    bad = x0.clone()
    bad[1, 2, 0, 0] = float("inf")
    yield Invalid("non-finite x0", lambda: call(bad, check_finite=True), ValueError, "NaN or Inf, first in sample 1")


def aot() -> Iterator[AotCase]:
    """Drawn in each memory mode, given, none (the backward), and with correlated frames."""
    for name, mode, correlation, seed, noise in (
        ("flat", FLAT, INDEPENDENT, "*i64", None),
        ("planes_of_four", PLANES_OF_FOUR, INDEPENDENT, "*i64", None),
        ("planes", PLANES, INDEPENDENT, "*i64", None),
        ("given", FLAT, INDEPENDENT, None, "*fp32"),
        ("scale", FLAT, INDEPENDENT, None, None),
        ("flat_mixed", FLAT, MIXED, "*i64", None),
        ("planes_of_four_progressive", PLANES_OF_FOUR, PROGRESSIVE, "*i64", None),
    ):
        optional = {"noise_ptr": noise, "seed_ptr": seed, "offset_ptr": seed, "stream_ptr": None}
        yield AotCase(
            name=f"q_sample_{name}",
            kernel="q_sample_kernel",
            signature={
                "x0_ptr": "*bf16", "t_ptr": "*i64", "signal_ptr": "*fp32", "scale_ptr": "*fp32", "out_ptr": "*bf16",
                "steps": "i32", "channels": "i32", "positions": "i32", "tiles": "i32", **FRAME_TYPES,
                **{k: v for k, v in optional.items() if v is not None},
            },
            constants={
                "CORRELATION": correlation, "MODE": mode, "QUADS": DRAW.quads,
                **{k: v for k, v in optional.items() if v is None},
            },
            divisible=("x0_ptr", "out_ptr", "positions", *(["noise_ptr"] if noise else [])),
            num_warps=DRAW.num_warps,
            enable_fp_fusion=False,
        )  # fmt: skip


def bench() -> Iterator[BenchCase]:
    """The noise is drawn: reads x0 and writes x_t, 4 bytes an element in half precision."""
    for name, shape, last in bench_layouts():

        def sample(
            device: torch.device, dtype: torch.dtype, shape: tuple[int, ...] = shape, last: bool = last
        ) -> Sample:
            x0 = randn(shape, device, dtype, grad=False)
            x0 = channels_last(x0) if last else x0
            seed = torch.tensor(1, device=device)
            return Sample("bench", (x0, _steps(shape[0], device), Tables.cosine(1000, device)), {"seed": seed})

        yield BenchCase(name=name, sample=sample, bytes_forward=2 * 4 * math.prod(shape))


def stored_noise(x0: torch.Tensor, t: torch.Tensor, schedule: Tables, *, seed: torch.Tensor) -> torch.Tensor:
    """What a trainer writes by hand: a noise tensor, two gathers, two products and a sum."""
    noise = torch.randn_like(x0)
    signal, noise_scale = schedule.sqrt_alphas_cumprod[t], schedule.sqrt_one_minus_alphas_cumprod[t]
    return (per_sample(signal, x0) * x0 + per_sample(noise_scale, x0) * noise).to(x0.dtype)


SPEC = OpSpec(
    name="q_sample",
    module=__package__,
    function=api.q_sample,
    reference=reference.q_sample,
    samples=samples,
    predicates=api.PREDICATES,
    invalid=invalid,
    aot=aot,
    bench=bench,
    peers={"stored noise": stored_noise},
    random_peers=("stored noise",),
    summary="a video noised to step t, the noise drawn in the kernel",
)
