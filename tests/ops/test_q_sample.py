"""q_sample: drawn equals given, bits on every instruction set, batch splits, out-of-range steps, compiled graphs."""

from __future__ import annotations

import pytest
import torch

import vdiff_fast as vf
from vdiff_fast.ops._common.cases.drawn_noise import channels_last
from vdiff_fast.ops._common.schedule import Tables

SCHEDULE = Tables.cosine(10)
# Channels 1, 3, 4, 7, 16 and 35 take different paths through planes of channels; sizes leave partial tiles.
SHAPES = [
    (2, 3, 4, 16, 16),
    (2, 4, 3, 31, 7),
    (3, 16, 5, 33),
    (2, 35, 9, 13),
    (1, 1, 5, 5),
    (2, 7, 1, 1),
    (3, 99),
    (3,),
]


def _video(shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)


def _steps(batch: int) -> torch.Tensor:
    return torch.arange(batch) * 3 % 10


def _layouts(x: torch.Tensor) -> list[torch.Tensor]:
    return [x, channels_last(x)] if x.dim() in (4, 5) else [x]


@pytest.mark.usefixtures("isa")
def test_every_instruction_set_gives_the_reference_bits() -> None:
    for shape in SHAPES:
        for dtype in (torch.float32, torch.bfloat16, torch.float64):
            for x0 in _layouts(_video(shape, dtype)):
                results = []
                for backend in ("reference", "cpu"):
                    with vf.use_backend(backend, ops=["q_sample"]):
                        results.append(vf.ops.q_sample(x0, _steps(len(x0)), SCHEDULE, seed=5, stream=3))
                assert torch.equal(*results), (shape, dtype, x0.stride())
                assert results[1].stride() == x0.stride()


@pytest.mark.interpreter
def test_triton_gives_the_reference_bits() -> None:
    for shape in SHAPES:
        for x0 in _layouts(_video(shape)):
            results = []
            for backend in ("reference", "triton"):
                with vf.use_backend(backend, ops=["q_sample"]):
                    results.append(vf.ops.q_sample(x0, _steps(len(x0)), SCHEDULE, seed=5, stream=3))
            assert torch.equal(*results), (shape, x0.stride())


def test_drawn_equals_given() -> None:
    for shape in SHAPES:
        for x0 in _layouts(_video(shape)):
            drawn = vf.ops.q_sample(x0, _steps(len(x0)), SCHEDULE, seed=21, sample_offset=4, stream=1)
            noise = vf.ops.noise(shape, 21, sample_offset=4, stream=1)
            assert torch.equal(drawn, vf.ops.q_sample(x0, _steps(len(x0)), SCHEDULE, noise=noise))


def test_any_split_of_the_batch_is_the_same_video() -> None:
    x0, t = channels_last(_video((5, 3, 2, 4, 4))), _steps(5)
    whole = vf.ops.q_sample(x0, t, SCHEDULE, seed=8)
    for rank in range(5):
        part = vf.ops.q_sample(x0[rank : rank + 1], t[rank : rank + 1], SCHEDULE, seed=8, sample_offset=rank)
        assert torch.equal(part, whole[rank : rank + 1])


def test_threads_do_not_change_a_bit() -> None:
    x0, before = _video((2, 3, 5, 64, 64)), torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(vf.ops.q_sample(x0, _steps(2), SCHEDULE, seed=8))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


def test_a_step_out_of_range_makes_that_sample_nan_while_compiling() -> None:
    torch._dynamo.reset()
    compiled = torch.compile(vf.ops.q_sample, fullgraph=True, backend="aot_eager")
    for t, schedule in (
        (torch.tensor([3, 10, -1]), SCHEDULE),
        (torch.tensor([0.5, 1.25, -0.25]), Tables.flow(10)),
    ):
        out = compiled(_video((3, 2, 4, 4)), t, schedule, seed=torch.tensor(1))
        assert out.isnan().flatten(1).all(1).tolist() == [False, True, True]


def test_flow_is_the_straight_line() -> None:
    x0, sigma = _video((3, 2, 4, 4)), torch.tensor([0.0, 0.25, 1.0])
    noise, flow = vf.ops.noise((3, 2, 4, 4), 2), Tables.flow(5)
    out = vf.ops.q_sample(x0, sigma, flow, seed=2)
    torch.testing.assert_close(out, torch.lerp(x0, noise, sigma.view(-1, 1, 1, 1)))
    assert torch.equal(out, vf.ops.q_sample(x0, torch.tensor([0, 1, 4]), flow, seed=2))


def test_nothing_but_the_steps_is_saved() -> None:
    saved: list[torch.Tensor] = []
    x0 = _video((2, 3, 4, 8, 8)).requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        vf.ops.q_sample(x0, _steps(2), SCHEDULE, seed=1)
    assert sum(t.numel() for t in saved) == 2 + 2 * SCHEDULE.timesteps


@pytest.mark.parametrize("dynamic", [None, True])
def test_one_graph_serves_six_seeds(dynamic: bool | None) -> None:
    graphs = []

    def count(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> torch.fx.GraphModule:
        graphs.append(graph)
        return graph

    def call(seed: int | torch.Tensor) -> torch.Tensor:
        return vf.ops.q_sample(x0, t, SCHEDULE, seed=seed)

    x0, t = _video((2, 3, 4, 6)), _steps(2)
    for convert, most in ((torch.tensor, 1), (int, 1 if dynamic else 2)):
        torch._dynamo.reset()
        graphs.clear()
        compiled = torch.compile(call, backend=count, fullgraph=True, dynamic=dynamic)
        for seed in (11, 12, 13, 2**40, -5, 77):
            assert torch.equal(compiled(convert(seed)), call(seed))
        assert len(graphs) <= most
