"""The noise itself: published words, bits on every instruction set, statistics, counters."""

from __future__ import annotations

import math

import pytest
import torch

import vdiff_fast as vf
from vdiff_fast import _philox
from vdiff_fast.bench.measure import peak_bytes

# Random123's kat_vectors for philox4x32 with 10 rounds: counter, key, output.
KNOWN_ANSWERS = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]
SHAPES = [(2, 3, 4, 16, 17), (3, 5, 9, 7), (2, 4099), (1, 1, 1, 1), (2, 8, 3, 3)]
N = 400_000


@pytest.mark.parametrize(("counter", "key", "words"), KNOWN_ANSWERS)
def test_words_are_the_published_ones(counter: tuple[int, ...], key: tuple[int, int], words: tuple[int, ...]) -> None:
    k0, k1 = (torch.tensor(k) for k in key)
    assert tuple(int(w) for w in _philox.philox4x32(tuple(torch.tensor(c) for c in counter), (k0, k1))) == words


def test_normals_are_box_muller_of_the_words() -> None:
    words = torch.randint(0, 2**32, (4, 100_000), generator=torch.Generator().manual_seed(0))
    words[:, :4] = torch.tensor([0, 1, 2**32 - 1, 2**31])
    u = (words[::2].float() * 2.0**-32 + 2.0**-33).double()
    radius, angle = (-2 * u.log()).sqrt(), words[1::2].double() * (2 * math.pi / 2**32)
    exact = torch.stack([radius[0] * angle[0].cos(), radius[0] * angle[0].sin()], dim=-1)
    normals = _philox.box_muller(tuple(words))[:, :2].double()
    assert float((normals - exact).abs().max()) < 2e-6
    assert bool(torch.isfinite(normals).all())


@pytest.mark.usefixtures("isa")
def test_every_instruction_set_gives_the_reference_bits() -> None:
    for shape in SHAPES:
        for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
            drawn = []
            for backend in ("reference", "cpu"):
                with vf.use_backend(backend, ops=["noise"]):
                    drawn.append(vf.ops.noise(shape, -77, sample_offset=2**32 - 1, stream=5, dtype=dtype))
            assert torch.equal(*drawn)


@pytest.mark.interpreter
def test_triton_gives_the_reference_bits() -> None:
    for shape in SHAPES:
        drawn = []
        for backend in ("reference", "triton"):
            with vf.use_backend(backend, ops=["noise"]):
                drawn.append(vf.ops.noise(shape, -77, sample_offset=2**32 - 1, stream=5))
        assert torch.equal(*drawn)


def test_channels_are_counted_last_in_channels_last_memory() -> None:
    video, flat = vf.ops.noise((2, 3, 4, 5, 6), 9), vf.ops.noise((2, 360), 9)
    assert video.is_contiguous(memory_format=torch.channels_last_3d)
    assert torch.equal(video.movedim(1, -1).reshape(2, -1), flat)
    image = vf.ops.noise((2, 3, 5, 6), 9)
    assert image.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(image.movedim(1, -1).reshape(2, -1), flat[:, :90])


def test_any_split_of_the_batch_is_the_same_video() -> None:
    whole = vf.ops.noise((7, 3, 2, 5), 11, stream=2)
    for cut in range(8):
        parts = [vf.ops.noise((cut, 3, 2, 5), 11, stream=2)]
        parts.append(vf.ops.noise((7 - cut, 3, 2, 5), 11, stream=2, sample_offset=torch.tensor(cut)))
        assert torch.equal(torch.cat(parts), whole)


def test_counters_wrap_as_32_bit_words() -> None:
    wrapped = vf.ops.noise((2, 8), 1, sample_offset=2**32 - 1)
    assert torch.equal(wrapped[1:], vf.ops.noise((1, 8), 1))
    assert torch.equal(vf.ops.noise((1, 8), 1, stream=-1), vf.ops.noise((1, 8), 1, stream=2**32 - 1))
    assert not torch.equal(vf.ops.noise((1, 8), 1), vf.ops.noise((1, 8), 1 + 2**32))


def kolmogorov_smirnov(values: torch.Tensor) -> float:
    """sqrt(n) sup |F_n - Phi|, which exceeds 1.95 once in a thousand times."""
    ordered = values.double().flatten().sort().values
    n = ordered.numel()
    cdf = torch.special.ndtr(ordered)
    rank = torch.arange(n, dtype=torch.float64)
    return math.sqrt(n) * float(torch.maximum((cdf - rank / n).abs(), (cdf - (rank + 1) / n).abs()).max())


@pytest.mark.parametrize("seed", [0, 1, -1, 2**40 + 3])
def test_values_are_standard_normal(seed: int) -> None:
    z = vf.ops.noise((1, N), seed, dtype=torch.float64)
    for power, (mean, deviation) in {1: (0, 1), 2: (1, 2**0.5), 3: (0, 15**0.5), 4: (3, 96**0.5)}.items():
        assert abs(float((z**power).mean()) - mean) < 4.5 * deviation / math.sqrt(N)
    assert kolmogorov_smirnov(z) < 1.95
    assert 4.2 < float(z.abs().max()) < 6.7
    for lag in (1, 2, 3, 4, 5, 8, 64):
        assert abs(float((z[:, lag:] * z[:, :-lag]).mean())) < 4.5 / math.sqrt(N)


def test_the_uniform_statistic_sees_a_wrong_distribution() -> None:
    assert kolmogorov_smirnov(vf.ops.noise((1, N), 3) * 1.01) > 1.95


def test_samples_streams_and_seeds_are_uncorrelated() -> None:
    n = N // 4
    draws = [vf.ops.noise((4, n), 5), vf.ops.noise((4, n), 5, stream=1), vf.ops.noise((4, n), 5, stream=2)]
    draws += [vf.ops.noise((4, n), seed) for seed in (6, 7, 2**32 + 5, -5)]
    rows = torch.cat(draws).double()
    correlation = rows @ rows.T / n - torch.eye(len(rows))
    off_diagonal = correlation[~torch.eye(len(rows), dtype=torch.bool)]
    assert float(off_diagonal.abs().max()) < 5 / math.sqrt(n)


@pytest.mark.parametrize("dynamic", [None, True])
def test_one_graph_serves_six_seeds(dynamic: bool | None) -> None:
    graphs = []

    def count(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> torch.fx.GraphModule:
        graphs.append(graph)
        return graph

    def draw(seed: int | torch.Tensor) -> torch.Tensor:
        return vf.ops.noise((2, 3, 4, 4), seed)

    for convert, most in ((torch.tensor, 1), (int, 1 if dynamic else 2)):
        torch._dynamo.reset()
        graphs.clear()
        compiled = torch.compile(draw, backend=count, fullgraph=True, dynamic=dynamic)
        for seed in (11, 12, 13, 2**40, -5, 77):
            assert torch.equal(compiled(convert(seed)), draw(seed))
        # An int is specialised at first sight unless dynamic=True; from its second value on, one graph serves all.
        assert len(graphs) <= most


@pytest.mark.parametrize("kind", ["mixed", "progressive"])
@pytest.mark.parametrize("correlation", [0.3, 0.9])
def test_frames_are_correlated_as_asked_and_have_unit_variance(kind: str, correlation: float) -> None:
    z = vf.ops.noise((2, 4, 5, 64, 64), 11, frame_correlation=correlation, correlation_kind=kind)
    frames = z.movedim(2, 0).flatten(1)
    lag = (torch.arange(5)[:, None] - torch.arange(5)).abs()
    expected = correlation**lag if kind == "progressive" else torch.where(lag == 0, 1.0, correlation)
    # 32,768 pairs: a correlation is known to 1 / sqrt(n) = 0.0055.
    torch.testing.assert_close(torch.corrcoef(frames), expected.float(), rtol=0, atol=0.025)
    torch.testing.assert_close(frames.var(dim=1), torch.ones(5), rtol=0, atol=0.04)
    torch.testing.assert_close(frames.mean(dim=1), torch.zeros(5), rtol=0, atol=0.025)
    assert abs(float(torch.corrcoef(z.flatten(1))[0, 1])) < 0.025  # samples stay independent


@pytest.mark.parametrize("kind", ["mixed", "progressive"])
@pytest.mark.parametrize("shape", [(3, 3, 4, 16, 16), (2, 3, 3, 5, 7), (2, 1, 6, 3, 3)])
def test_correlated_noise_has_the_same_bits_on_the_cpu_kernel(kind: str, shape: tuple[int, ...]) -> None:
    options = {"sample_offset": 7, "stream": 3, "frame_correlation": 0.7, "correlation_kind": kind}
    drawn = vf.ops.noise(shape, 5, **options)
    with vf.use_backend("reference"):
        assert torch.equal(drawn, vf.ops.noise(shape, 5, **options))
    parts = [vf.ops.noise((1, *shape[1:]), 5, **options | {"sample_offset": 7 + b}) for b in range(shape[0])]
    assert torch.equal(torch.cat(parts), drawn)


def test_full_correlation_repeats_a_frame_and_none_is_plain_noise() -> None:
    shape = (2, 3, 4, 5, 6)
    same = vf.ops.noise(shape, 1, frame_correlation=1.0)
    assert torch.equal(same, same[:, :, :1].expand(shape))
    assert torch.equal(vf.ops.noise(shape, 1, frame_correlation=0.0), vf.ops.noise(shape, 1))


# Frames of whole counters in one task and in many, frames that begin inside a counter, more channels than a task holds.
VIDEOS = [(2, 4, 3, 4, 8), (1, 3, 2, 4, 500), (2, 3, 4, 5, 6), (1, 1, 3, 5, 5), (1, 70, 2, 2, 3), (1, 300, 2, 1, 3)]


@pytest.mark.parametrize("kind", ["mixed", "progressive"])
@pytest.mark.usefixtures("isa")
def test_every_op_draws_the_same_correlated_noise(kind: str) -> None:
    for shape in VIDEOS:
        for memory in (torch.contiguous_format, torch.channels_last_3d):
            _check_correlated(shape, kind, memory)


def _check_correlated(shape: tuple[int, ...], kind: str, memory: torch.memory_format) -> None:
    """q_sample, the loss's gradient and a sampler's step, each drawing the noise itself, against the noise given."""
    generator = torch.Generator().manual_seed(0)
    x0, prediction = torch.randn(2, *shape, generator=generator).unbind(0)
    x0, prediction = x0.contiguous(memory_format=memory), prediction.contiguous(memory_format=memory).requires_grad_()
    schedule, t = vf.diffusion.NoiseSchedule.linear(), torch.tensor([3, 700])[: shape[0]]
    options = {"frame_correlation": 0.5, "correlation_kind": kind}
    with vf.use_backend("reference"):
        z = vf.ops.noise(shape, 9, sample_offset=4, **options)
        step_noise = vf.ops.noise(shape, 9, sample_offset=4, stream=2, **options)
    words = {"seed": 9, "sample_offset": 4, **options}
    assert torch.equal(vf.ops.noise(shape, 9, sample_offset=4, **options), z)
    assert torch.equal(vf.ops.q_sample(x0, t, schedule, **words), vf.ops.q_sample(x0, t, schedule, noise=z))
    losses = [
        vf.ops.diffusion_loss(prediction, x0, t, schedule, target="v", **source) for source in (words, {"noise": z})
    ]
    torch.testing.assert_close(*losses)
    assert torch.equal(*(torch.autograd.grad(loss, prediction)[0] for loss in losses))
    table = vf.diffusion.sampler_table(schedule, "ddpm", 4).coefficients
    drawn, given = (
        vf.ops.sampler_step(x0, prediction.detach(), table, 1, **source) for source in (words, {"noise": step_noise})
    )
    assert torch.equal(drawn[0], given[0])


@pytest.mark.parametrize("kind", ["mixed", "progressive"])
def test_a_correlated_draw_stores_no_noise(kind: str) -> None:
    x0, schedule, t = torch.zeros(1, 4, 4, 16, 16), vf.diffusion.NoiseSchedule.linear(), torch.tensor([3])
    options = {"seed": torch.tensor(9), "frame_correlation": 0.5, "correlation_kind": kind}
    added = peak_bytes(lambda: vf.ops.q_sample(x0, t, schedule, **options), x0.device)
    assert x0.nbytes <= added < 2 * x0.nbytes


@pytest.mark.parametrize("kind", ["mixed", "progressive"])
def test_sampling_with_correlated_noise(kind: str) -> None:
    schedule, options = vf.diffusion.NoiseSchedule.linear(), {"frame_correlation": 0.5, "correlation_kind": kind}
    video = vf.diffusion.sample(lambda x, t: 0 * x, (2, 2, 3, 4, 5), schedule, "ddpm", steps=3, seed=2, **options)
    assert video.isfinite().all()
