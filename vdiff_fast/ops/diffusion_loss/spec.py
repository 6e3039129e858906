"""What the generic tests and benchmarks know of diffusion_loss."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch.nn import functional as F

from vdiff_fast._spec import AotCase, BenchCase, Invalid, OpSpec, Sample, randn
from vdiff_fast.ops._common.cases.drawn_noise import FRAME_TYPES, bench_layouts, channels_last, correlated_cases
from vdiff_fast.ops._common.schedule import Tables, per_sample
from vdiff_fast.ops._common.targets import TARGETS
from vdiff_fast.ops._common.tiling import DRAW, FLAT, INDEPENDENT, MIXED, PLANES, PLANES_OF_FOUR, PROGRESSIVE
from vdiff_fast.ops.diffusion_loss import api, reference
from vdiff_fast.ops.diffusion_loss.config import INPUTS

SHAPES = ((2, 3, 4, 5), (2, 4, 3, 5, 2), (3, 5, 7), (4,), (1, 16, 1, 1, 5))


def samples(device: torch.device, dtype: torch.dtype) -> Iterator[Sample]:
    schedule, seed = Tables.cosine(10, device), torch.tensor(31, device=device)
    for shape in SHAPES:
        prediction, x0 = randn(shape, device, dtype), randn(shape, device, dtype, seed=1, grad=False)
        t = (torch.arange(shape[0], device=device) * 4) % 10
        yield Sample("x".join(map(str, shape)), (prediction, x0, t, schedule), {"seed": seed, "target": "v"})
    nothing, t = torch.zeros(0, 3, 2, 2, device=device, dtype=dtype), torch.zeros(0, device=device, dtype=torch.int64)
    yield Sample("empty", (nothing, nothing, t, schedule), {"seed": seed, "reduction": "none"})
    prediction, x0 = randn((3, 3, 4, 5), device, dtype), randn((3, 3, 4, 5), device, dtype, seed=1)
    t = torch.tensor([0, 4, 9], device=device)
    for target in TARGETS:
        for weighting in ("uniform", "min_snr"):
            options = {"target": target, "weighting": weighting, "reduction": "none", "seed": seed}
            yield Sample(f"{target}-{weighting}", (prediction, x0, t, schedule), options)
    options = {"target": "v", "seed": seed}
    yield Sample("cl", (channels_last(prediction), channels_last(x0), t, schedule), options)
    yield Sample("mixed-layouts", (channels_last(prediction), x0, t, schedule), options)
    yield Sample("x0-fp32", (prediction, x0.detach().float(), t, schedule), options)
    yield Sample("huber", (prediction, x0, t, schedule), {**options, "kind": "huber", "delta": 0.5})
    given = randn((3, 3, 4, 5), device, dtype, seed=2)
    yield Sample("noise-given", (prediction, x0, t, schedule), {"target": "v", "noise": given})
    yield Sample("noise-fp32", (prediction, x0, t, schedule), {"noise": given.detach().float()})
    sigma, flow = torch.tensor([0.0, 0.25, 1.0], device=device).double(), Tables.flow(10, device)
    words = {"seed": seed, "sample_offset": 5, "stream": 3}
    yield Sample("flow", (prediction, x0, sigma, flow), {"target": "flow", "weighting": "min_snr", **words})
    for name, video, last, correlation in correlated_cases():
        prediction, x0 = randn(video, device, dtype), randn(video, device, dtype, seed=1, grad=False)
        if last:
            prediction, x0 = channels_last(prediction), channels_last(x0)
        yield Sample(name, (prediction, x0, t[: video[0]], schedule), {"target": "v", **words, **correlation})
    long, other = randn((1, 3, 700), device, dtype), randn((1, 3, 700), device, dtype, seed=1, grad=False)
    yield Sample("one-sample", (long, other, t[1:2], schedule), options)


def invalid() -> Iterator[Invalid]:
    x0, t, schedule = torch.zeros(2, 3, 4, 4), torch.tensor([1, 9]), Tables.cosine(10)

    def call(prediction: Any = x0, x: Any = x0, step: Any = t, **changes: Any) -> Any:
        return api.diffusion_loss(prediction, x, step, schedule, **({"seed": 1} | changes))

    yield Invalid("prediction shape", lambda: call(x0[:, :2]), ValueError, r"shape \(2, 2, 4, 4\), but x0 has \(2, 3")
    yield Invalid("prediction dtype", lambda: call(x0.long()), TypeError, "prediction must be floating point")
    yield Invalid("prediction device", lambda: call(x0.to("meta")), ValueError, "prediction is on meta")
    yield Invalid("x0 dtype", lambda: call(x=x0.long()), TypeError, "x0 must be floating point")
    yield Invalid("t", lambda: call(step=t + 1), ValueError, r"\[0, 10\), got values from 2 to 10")
    yield Invalid("target", lambda: call(target="eps"), ValueError, "one of noise, v, x0, flow, got 'eps'")
    yield Invalid("weighting", lambda: call(weighting="snr"), ValueError, "weighting must be one of uniform, min_snr")
    yield Invalid("reduction", lambda: call(reduction="sum"), ValueError, "reduction must be one of mean, none")
    yield Invalid("kind", lambda: call(kind="l1"), ValueError, "kind must be one of mse, huber")
    yield Invalid("gamma", lambda: call(gamma=0.0), ValueError, "gamma must be positive and finite, got 0.0")
    yield Invalid("delta", lambda: call(delta=float("nan")), ValueError, "delta must be positive and finite, got nan")
    yield Invalid("no noise", lambda: call(seed=None), ValueError, "noise= or seed=, got neither")
    yield Invalid("stream", lambda: call(stream=1.0), TypeError, "stream must be .* got float")
    bad = x0.clone()
    bad[0, 0, 0, 0] = float("nan")
    yield Invalid("non-finite x0", lambda: call(x=bad, check_finite=True), ValueError, "NaN or Inf, first in sample 0")


def _aot_case(
    name: str, mode: int, target: str, *, given: bool = False, huber: bool = False, correlation: int = INDEPENDENT
) -> AotCase:
    optional = {
        "x0_ptr": None if target == "noise" else "*bf16",
        "noise_ptr": "*bf16" if given else None,
        "seed_ptr": None if given or target == "x0" else "*i64",
        "offset_ptr": None,
        "stream_ptr": None,
        "upstream_ptr": "*fp32" if "gradient" in name else None,
        "sums_ptr": None if "gradient" in name else "*fp64",
        "gradient_ptr": "*bf16" if "gradient" in name else None,
    }
    present = {k: v for k, v in optional.items() if v is not None}
    return AotCase(
        name=f"diffusion_loss_{name}",
        kernel="loss_kernel",
        signature={
            "prediction_ptr": "*bf16", "t_ptr": "*i64", "signal_ptr": "*fp32", "scale_ptr": "*fp32", "gamma": "fp32",
            "delta": "fp32", "samples": "i32", "steps": "i32", "channels": "i32", "positions": "i32", "tiles": "i32",
            **FRAME_TYPES, **present,
        },
        constants={
            **{k: v for k, v in optional.items() if v is None}, "UPSTREAM_STRIDE": 0,
            "TARGET": tuple(TARGETS).index(target),
            "MIN_SNR": True, "HUBER": huber, "OF": INPUTS.index("prediction"), "CORRELATION": correlation,
            "MODE": mode, "QUADS": DRAW.quads,
        },
        divisible=("prediction_ptr", "positions", *(k for k in present if optional[k] == "*bf16")),
        num_warps=DRAW.num_warps,
        enable_fp_fusion=False,
    )  # fmt: skip


def aot() -> Iterator[AotCase]:
    """Every memory mode, target and option once, forward and backward."""
    yield _aot_case("flat_noise", FLAT, "noise")
    yield _aot_case("flat_v_gradient", FLAT, "v")
    yield _aot_case("flat_huber_gradient", FLAT, "flow", huber=True)
    yield _aot_case("planes_of_four_v_gradient", PLANES_OF_FOUR, "v")
    yield _aot_case("planes_v_gradient", PLANES, "v")
    yield _aot_case("given_v_gradient", FLAT, "v", given=True)
    yield _aot_case("x0", FLAT, "x0")
    yield _aot_case("flat_mixed_noise", FLAT, "noise", correlation=MIXED)
    yield _aot_case("planes_of_four_progressive_v_gradient", PLANES_OF_FOUR, "v", correlation=PROGRESSIVE)
    yield AotCase(
        name="diffusion_loss_sum",
        kernel="sum_kernel",
        signature={"sums_ptr": "*fp64", "loss_ptr": "*fp32", "count": "i32", "elements": "i64"},
        constants={"BLOCK": 1024},
        divisible=("sums_ptr",),
    )


def bench() -> Iterator[BenchCase]:
    """Target v, the noise drawn again: the forward reads prediction and x0, the backward also writes the gradient."""
    for name, shape, last in bench_layouts():

        def sample(
            device: torch.device, dtype: torch.dtype, shape: tuple[int, ...] = shape, last: bool = last
        ) -> Sample:
            prediction, x0 = randn(shape, device, dtype), randn(shape, device, dtype, seed=1, grad=False)
            if last:
                prediction, x0 = channels_last(prediction), channels_last(x0)
            t = torch.arange(shape[0], device=device) * 4
            options = {"target": "v", "seed": torch.tensor(1, device=device)}
            return Sample("bench", (prediction, x0, t, Tables.cosine(1000, device)), options)

        size = math.prod(shape)
        yield BenchCase(name=name, sample=sample, bytes_forward=2 * 4 * size, bytes_backward=3 * 4 * size)


def stored_noise(
    prediction: torch.Tensor, x0: torch.Tensor, t: torch.Tensor, schedule: Tables, *, target: str, seed: torch.Tensor
) -> torch.Tensor:
    """What a trainer writes by hand for target v, the noise of q_sample kept: here drawn by torch."""
    noise = torch.randn_like(x0)
    signal, noise_scale = schedule.sqrt_alphas_cumprod[t], schedule.sqrt_one_minus_alphas_cumprod[t]
    wanted = per_sample(signal, x0) * noise - per_sample(noise_scale, x0) * x0
    return F.mse_loss(prediction.float(), wanted.float())


SPEC = OpSpec(
    name="diffusion_loss",
    module=__package__,
    function=api.diffusion_loss,
    reference=reference.diffusion_loss,
    samples=samples,
    predicates=api.PREDICATES,
    invalid=invalid,
    aot=aot,
    bench=bench,
    peers={"stored noise": stored_noise},
    random_peers=("stored noise",),
    error_multiple=1.5,
    error_reason="a float32 gradient written by the forward pass is rounded there and again where it is scaled",
    summary="the loss of a prediction and its gradient, the noise drawn again instead of stored",
)
