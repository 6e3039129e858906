"""VideoUNet and VideoDiT under torch.compile: one graph, and the same one for other sizes."""

from __future__ import annotations

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from tests.models.helpers import gradients, small_dit, small_unet, steps, video


@pytest.mark.slow
def test_one_graph_serves_other_resolutions_and_numbers_of_frames() -> None:
    model = small_unet(blocks=(1, 0), temporal_attention=(True, False))
    assert_one_graph(model, [(2, 3, 5, 12, 8), (2, 3, 5, 20, 28), (2, 3, 7, 12, 16)])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("attention", "positions"), [("interleaved", "sincos"), ("divided", "rope"), ("joint", "sincos")]
)
def test_one_graph_of_a_transformer_serves_three_resolutions_and_two_numbers_of_frames(
    attention: str, positions: str
) -> None:
    model = small_dit(attention=attention, positions=positions, qk_norm=True)
    assert_one_graph(model, [(2, 3, 5, 12, 8), (2, 3, 5, 20, 28), (2, 3, 7, 12, 16)])


def assert_one_graph(model: torch.nn.Module, shapes: list[tuple[int, ...]]) -> None:
    """Outputs and gradients of the compiled model are the eager ones, and the first shape's graph serves all."""
    # Not a whole reset, after which every float would be traced as a symbol first, and all of the model twice.
    torch._dynamo.reset_code_caches()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend=counter)
    for shape in shapes:
        x, t = video(shape), steps()
        y, expected = gradients(model, x, t)
        x.requires_grad_()
        prediction = compiled(x, t)
        torch.testing.assert_close(prediction, y)
        cotangent = torch.randn(y.shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64).float()
        actual = torch.autograd.grad(prediction, [x, *model.parameters()], cotangent)
        for a, e in zip(actual, expected):
            torch.testing.assert_close(a, e)
        if shape == shapes[0]:
            frames = counter.frame_count
    assert counter.frame_count == frames
