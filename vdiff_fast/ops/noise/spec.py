"""What the generic tests and benchmarks know of noise."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch

from vdiff_fast._spec import AotCase, BenchCase, Invalid, OpSpec, Sample
from vdiff_fast.layout import channels_last
from vdiff_fast.ops._common.cases.drawn_noise import BENCH_SHAPES, FRAME_TYPES
from vdiff_fast.ops._common.tiling import DRAW, FLAT, INDEPENDENT, MIXED, PLANES, PROGRESSIVE
from vdiff_fast.ops.noise import api, reference

SHAPES = ((3,), (2, 7), (2, 3, 5), (2, 3, 4, 5), (2, 4, 3, 5, 2), (1, 1, 1, 1), (0, 3, 2, 2), (2, 0, 4))


def samples(device: torch.device, dtype: torch.dtype) -> Iterator[Sample]:
    for shape in SHAPES:
        seed = torch.tensor(1234567890123, device=device)
        yield Sample("x".join(map(str, shape)), (shape, seed), {"dtype": dtype})
    words = {"sample_offset": torch.tensor(2**32 - 1, device=device), "stream": torch.tensor(7, device=device)}
    yield Sample("words", ((2, 3, 2, 3), torch.tensor(-5, device=device)), {"dtype": dtype, **words})
    for kind in ("mixed", "progressive"):
        for shape in ((2, 3, 4, 2, 5), (2, 4, 3, 5, 2), (1, 1, 3, 2, 2)):  # frames of 30, 40 and 4 elements
            options = {"dtype": dtype, "frame_correlation": 0.6, "correlation_kind": kind}
            yield Sample(f"{kind}_{shape[1]}", (shape, torch.tensor(-5, device=device)), options)
    yield Sample("integers", ((2, 3, 2, 3), -5), {"dtype": dtype, "device": device, "sample_offset": 3, "stream": 9})


def invalid() -> Iterator[Invalid]:
    draw = api.noise
    yield Invalid("float seed", lambda: draw((2, 3), 1.5), TypeError, "seed must be an int or a 0-d int64.*float")  # type: ignore[arg-type]
    yield Invalid("bool seed", lambda: draw((2, 3), True), TypeError, "seed must be .* got bool")
    yield Invalid("int32 seed", lambda: draw((2, 3), torch.tensor(1, dtype=torch.int32)), TypeError, "torch.int32")
    yield Invalid("seed of a shape", lambda: draw((2, 3), torch.ones(2).long()), TypeError, r"shape \(2,\)")
    yield Invalid("65-bit seed", lambda: draw((2, 3), 2**63), ValueError, "64 signed bits")
    yield Invalid("seed elsewhere", lambda: draw((2, 3), torch.tensor(1), device="meta"), ValueError, "seed is on cpu")
    yield Invalid("stream", lambda: draw((2, 3), 1, stream="a"), TypeError, "stream must be .* got str")  # type: ignore[arg-type]
    video = (1, 2, 3, 4, 4)
    yield Invalid("correlation", lambda: draw(video, 1, frame_correlation=1.5), ValueError, r"within \[0, 1\]")
    yield Invalid("kind", lambda: draw(video, 1, correlation_kind="pink"), ValueError, "mixed or progressive")
    yield Invalid("image", lambda: draw((1, 2, 4, 4), 1, frame_correlation=0.5), ValueError, "needs a video")
    yield Invalid("no batch", lambda: draw((), 1), ValueError, r"shape must be \(B, ...\)")
    yield Invalid("negative", lambda: draw((2, -3), 1), ValueError, r"got \(2, -3\)")
    yield Invalid("integer dtype", lambda: draw((2, 3), 1, dtype=torch.int64), TypeError, "torch.int64")


def aot() -> Iterator[AotCase]:
    pointers = {"seed_ptr": "*i64", "offset_ptr": "*i64", "stream_ptr": "*i64"}
    for output in ("*fp32", "*bf16"):
        yield AotCase(
            name=f"noise_{output[1:]}",
            kernel="noise_kernel",
            signature={**pointers, "y_ptr": output, "elements": "i64", "tiles": "i32"} | FRAME_TYPES,
            constants={"CORRELATION": INDEPENDENT, "MODE": FLAT, "QUADS": DRAW.quads},
            divisible=("y_ptr", "elements"),
            num_warps=DRAW.num_warps,
            enable_fp_fusion=False,
        )
    for name, correlation, mode in (("mixed", MIXED, FLAT), ("progressive", PROGRESSIVE, PLANES)):
        yield AotCase(
            name=f"noise_{name}",
            kernel="noise_kernel",
            signature={**pointers, "y_ptr": "*bf16", "elements": "i64", "tiles": "i32"} | FRAME_TYPES,
            constants={"CORRELATION": correlation, "MODE": mode, "QUADS": DRAW.quads},
            divisible=("y_ptr", "elements") if mode == FLAT else ("y_ptr",),
            num_warps=DRAW.num_warps,
            enable_fp_fusion=False,
        )


def bench() -> Iterator[BenchCase]:
    for name, shape in BENCH_SHAPES.items():

        def sample(device: torch.device, dtype: torch.dtype, shape: tuple[int, ...] = shape) -> Sample:
            return Sample("bench", (shape, torch.tensor(1, device=device)), {"dtype": dtype})

        yield BenchCase(name=name, sample=sample, bytes_forward=4 * math.prod(shape))


def torch_randn(shape: tuple[int, ...], seed: torch.Tensor, *, dtype: torch.dtype) -> torch.Tensor:
    """torch's generator, in the memory layout a video network reads."""
    values = torch.randn(shape, dtype=dtype, device=seed.device)
    return channels_last(values)


SPEC = OpSpec(
    name="noise",
    module=__package__,
    function=api.noise,
    reference=reference.noise,
    samples=samples,
    predicates=api.PREDICATES,
    invalid=invalid,
    aot=aot,
    bench=bench,
    peers={"torch.randn": torch_randn},
    random_peers=("torch.randn",),
    exact=True,
    gradcheck=False,
    summary="counter-based standard normals, the same bits on every backend",
)
