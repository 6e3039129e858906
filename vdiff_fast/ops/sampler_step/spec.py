"""What the generic tests and benchmarks know of sampler_step."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from vdiff_fast._spec import AotCase, BenchCase, Invalid, OpSpec, Sample, randn
from vdiff_fast.ops._common.cases.drawn_noise import FRAME_TYPES, correlated_cases
from vdiff_fast.ops._common.tiling import DRAW, FLAT, INDEPENDENT, MIXED, PLANES, PLANES_OF_FOUR, PROGRESSIVE
from vdiff_fast.ops.sampler_step import api, columns, reference
from vdiff_fast.ops.sampler_step.config import SPREAD


def table(device: torch.device) -> Tensor:
    """Three steps of a made-up sampler that uses every term; the last draws no noise."""
    rows = [
        # X0_X, X0_Y, X, X0, Y, PREVIOUS, NOISE, GUIDANCE, PREVIOUS2
        [1.5, -1.1, 0.5, 0.4, 0.3, 0.0, 0.2, 7.5, 0.0],
        [1.2, -0.7, 0.6, 0.5, 0.0, -0.1, 0.3, 3.0, 0.15],
        [1.0, -0.6, 0.1, 0.9, 0.2, 0.0, 0.0, 4.0, 0.0],
    ]
    return torch.tensor(rows, dtype=torch.float32, device=device)


def _tensors(
    shape: tuple[int, ...], device: torch.device, dtype: torch.dtype, last: bool, count: int = 4
) -> list[Tensor]:
    made = [randn(shape, device, dtype, seed=i, grad=False) for i in range(count)]
    if last:
        memory = torch.channels_last if len(shape) == 4 else torch.channels_last_3d
        made = [m.contiguous(memory_format=memory) for m in made]
    return made


def samples(device: torch.device, dtype: torch.dtype) -> Iterator[Sample]:
    rows = table(device)
    seed = torch.tensor(77, device=device)
    step = torch.arange(3, device=device)
    for name, shape, last in (
        ("contiguous", (2, 4, 3, 5, 6), False),
        ("channels_last", (2, 3, 4, 5, 6), True),
        ("images", (3, 5, 7, 3), True),
        ("odd", (3, 1, 37), False),
    ):
        x, prediction, uncond, previous = _tensors(shape, device, dtype, last)
        # Tracing the reference's noise takes seconds, so two layouts draw it and two are given it.
        source = {"seed": seed, "sample_offset": 5} if "c" in name else {"noise": uncond}
        options = {"uncond": uncond, "previous": previous, "previous2": x * 0.5, "clip": 1.0} | source
        yield Sample(name, (x, prediction, rows, step[1]), options)
    x, prediction, uncond, previous = _tensors((3, 4, 2, 6, 5), device, dtype, True)
    call = (x, prediction, rows, step[2])
    yield Sample("plain", call)
    yield Sample("integer_step", (x, prediction, rows, 0), {"noise": uncond})
    yield Sample("rescaled", call, {"uncond": uncond, "guidance_rescale": 0.7})
    yield Sample("rescaled_constant", (x, torch.zeros_like(x), rows, step[2]), {
        "uncond": torch.zeros_like(x), "guidance_rescale": 0.7,
    })  # fmt: skip
    single = randn((3, 1), device, dtype, grad=False)
    yield Sample("rescaled_single", (single, single, rows, step[2]), {"uncond": 2 * single, "guidance_rescale": 0.7})
    flat = single.flatten()
    yield Sample("vector", (flat, flat, rows, step[2]), {
        "uncond": 2 * flat, "guidance_rescale": 0.7, "clip": "dynamic",
    })  # fmt: skip
    yield Sample("dynamic", call, {"clip": "dynamic", "dynamic_ratio": 0.9})
    yield Sample("dynamic_max", call, {"clip": "dynamic", "dynamic_max": 1.5, "uncond": uncond})
    yield Sample(
        "noise_given", (x, prediction, rows, step[1]), {"noise": uncond, "previous": previous, "previous2": uncond}
    )
    narrow = torch.bfloat16 if dtype == torch.float32 else dtype  # what autocast gives a float32 x
    yield Sample("narrow", (x, prediction.to(narrow), rows, step[2]), {"uncond": uncond.to(narrow)})
    yield Sample("strided", (x.transpose(2, 4), prediction.transpose(2, 4), rows, step[2]), {"clip": 2.0})
    for name, video, last, correlation in correlated_cases():
        x, prediction = _tensors(video, device, dtype, last, count=2)
        yield Sample(name, (x, prediction, rows, step[0]), {"seed": seed, **correlation})
    empty = x[:0]
    yield Sample("empty", (empty, empty, rows, step[2]), {"clip": "dynamic"})


def invalid() -> Iterator[Invalid]:
    f = api.sampler_step
    x, rows = torch.zeros(2, 3), table(torch.device("cpu"))
    yield Invalid("integer", lambda: f(x.long(), x, rows, 0), TypeError, "x must be floating point, got torch.int64")
    yield Invalid(
        "shape", lambda: f(x, x[:1], rows, 2), ValueError, r"prediction has shape \(1, 3\), but x has \(2, 3\)"
    )
    yield Invalid("table", lambda: f(x, x, rows[:, :5], 2), ValueError, r"table must be \(steps, 9\)")
    yield Invalid("device", lambda: f(x, x.to("meta"), rows, 2), ValueError, "prediction is on meta, but x is on cpu")
    yield Invalid("step", lambda: f(x, x, rows, 3), ValueError, "step 3 is not within the table's 3 steps")
    yield Invalid("previous", lambda: f(x, x, rows, 1, seed=1), ValueError, "give previous=")
    yield Invalid("previous2", lambda: f(x, x, rows, 1, seed=1, previous=x), ValueError, "give previous2=")
    yield Invalid("no noise", lambda: f(x, x, rows, 0), ValueError, "give seed= or noise=")
    yield Invalid("both", lambda: f(x, x, rows, 0, seed=1, noise=x), ValueError, "not both")
    yield Invalid("seed", lambda: f(x, x, rows, 0, seed=1.0), TypeError, "seed must be")  # type: ignore[arg-type]
    yield Invalid("clip", lambda: f(x, x, rows, 2, clip=-1.0), ValueError, "clip must be None, a number > 0")
    yield Invalid("clip name", lambda: f(x, x, rows, 2, clip="static"), ValueError, "got 'static'")
    yield Invalid("rescale", lambda: f(x, x, rows, 2, guidance_rescale=0.5), ValueError, "needs uncond=")
    yield Invalid(
        "rescale range", lambda: f(x, x, rows, 2, uncond=x, guidance_rescale=2.0), ValueError, r"within \[0, 1\]"
    )
    yield Invalid("ratio", lambda: f(x, x, rows, 2, clip="dynamic", dynamic_ratio=0.0), ValueError, "dynamic_ratio")
    yield Invalid("max", lambda: f(x, x, rows, 2, clip="dynamic", dynamic_max=0.5), ValueError, "dynamic_max")


_POINTERS = {
    "x_ptr": "*bf16", "prediction_ptr": "*bf16", "uncond_ptr": "*bf16", "previous_ptr": "*bf16",
    "previous2_ptr": "*bf16", "noise_ptr": "*bf16",
    "seed_ptr": "*i64", "offset_ptr": "*i64", "stream_ptr": "*i64", "table_ptr": "*fp32", "step_ptr": "*i64",
    "scale_ptr": "*fp32", "limit_ptr": "*fp32", "x_prev_ptr": "*bf16", "x0_ptr": "*bf16", "out_ptr": "*fp32",
    "parts_ptr": "*fp32",
}  # fmt: skip
_SIZES = ("steps", "channels", "positions", "tiles", "elements")


def _aot_case(name: str, kernel: str, absent: set[str], constants: dict[str, int], num_warps: int) -> AotCase:
    """Pointers that are absent are None; data pointers are 16-byte aligned."""
    signature = _POINTERS | dict.fromkeys(_SIZES, "i32") | FRAME_TYPES | {"clip": "fp32", "rescale": "fp32"}
    return AotCase(
        name=f"sampler_step_{name}",
        kernel=kernel,
        signature={k: v for k, v in signature.items() if k not in absent},
        constants=dict.fromkeys(absent) | constants,
        divisible=(),
        num_warps=num_warps,
        enable_fp_fusion=False,
    )


def aot() -> Iterator[AotCase]:
    """The fullest step in each memory mode, a deterministic one, and the reductions."""
    history = {"previous_ptr", "previous2_ptr"}
    for name, mode, correlation, clip, absent in (
        ("flat", FLAT, INDEPENDENT, columns.FIXED, {"noise_ptr", "stream_ptr", "scale_ptr", "limit_ptr"}),
        ("planes_of_four", PLANES_OF_FOUR, INDEPENDENT, columns.DYNAMIC, {"noise_ptr", "offset_ptr"}),
        ("planes", PLANES, INDEPENDENT, columns.NO_CLIP, {"noise_ptr", "limit_ptr"} | history),
        ("deterministic", FLAT, INDEPENDENT, columns.NO_CLIP, {
            "noise_ptr", "seed_ptr", "offset_ptr", "stream_ptr", "scale_ptr", "limit_ptr",
        } | history),
        ("flat_mixed", FLAT, MIXED, columns.FIXED, {"noise_ptr", "stream_ptr", "scale_ptr", "limit_ptr"}),
        ("planes_of_four_progressive", PLANES_OF_FOUR, PROGRESSIVE, columns.FIXED, {
            "noise_ptr", "scale_ptr", "limit_ptr"
        } | history),
    ):  # fmt: skip
        constants = {"CLIP": clip, "CORRELATION": correlation, "MODE": mode, "QUADS": DRAW.quads}
        yield _aot_case(name, "update_kernel", absent, constants, DRAW.num_warps)
    block = {"BLOCK": SPREAD.block}
    yield _aot_case("magnitude", "magnitude_kernel", {"scale_ptr"}, block, SPREAD.num_warps)
    yield _aot_case("spread", "spread_kernel", set(), block, SPREAD.num_warps)
    yield _aot_case("rescale", "rescale_kernel", set(), block | {"PARTS": SPREAD.parts}, 4)


def bench() -> Iterator[BenchCase]:
    """Latents of Stable Video Diffusion and Wan, and pixels of the demo."""
    for name, shape in (
        ("svd_latent", (2, 4, 14, 72, 128)),
        ("wan_latent", (1, 16, 21, 60, 104)),
        ("pixels", (4, 3, 16, 64, 64)),
    ):
        for kind in ("ddim", "ddpm", "guided"):

            def sample(
                device: torch.device, dtype: torch.dtype, shape: tuple[int, ...] = shape, kind: str = kind
            ) -> Sample:
                x, prediction, uncond, _ = _tensors(shape, device, dtype, last=True)
                rows = table(device)
                rows[0, columns.NOISE] *= kind != "ddim"
                step = torch.zeros((), dtype=torch.int64, device=device)
                options = {} if kind == "ddim" else {"seed": torch.tensor(1, device=device), "clip": 1.0}
                if kind == "guided":
                    options["uncond"] = uncond
                return Sample("bench", (x, prediction, rows, step), options)

            yield BenchCase(name=f"{name}_{kind}", sample=sample, tags=(kind,))


SPEC = OpSpec(
    name="sampler_step",
    module=__package__,
    function=api.sampler_step,
    reference=reference.sampler_step,
    samples=samples,
    predicates=api.PREDICATES,
    invalid=invalid,
    aot=aot,
    bench=bench,
    gradcheck=False,
    summary="guidance, x0, clipping, update and noise of one sampling step",
)
