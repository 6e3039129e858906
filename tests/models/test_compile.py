"""VideoUNet and VideoDiT under torch.compile: one graph, and the same one for other sizes."""

from __future__ import annotations

from collections.abc import Callable

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


CONDITIONS = {"num_classes": 10, "context_dim": 32, "cond_channels": 4, "condition_injection": "blocks"}


@pytest.mark.slow
@pytest.mark.parametrize("make", [small_unet, small_dit])
def test_no_graph_break_without_gradients(make: Callable[..., torch.nn.Module]) -> None:
    """A sampling step, and one whose keys and values and modulations were made before."""
    model = make(positions="rope", **CONDITIONS)
    x, t = video(), steps()
    given = {"y": torch.tensor([1, 2]), "context": torch.randn(2, 5, 32), "cond": torch.randn(2, 4, *x.shape[2:])}
    with torch.inference_mode():
        expected = model(x, t, **given)
        made = {"modulation": model.modulations(t, given["y"]), "keys_values": model.keys_values(given["context"])}
        torch._dynamo.reset_code_caches()
        compiled = torch.compile(model, fullgraph=True, backend="eager")
        torch.testing.assert_close(compiled(x, t, **given), expected)
        torch.testing.assert_close(compiled(x, t, cond=given["cond"], **made), expected)


@pytest.mark.slow
@pytest.mark.parametrize("make", [small_unet, small_dit])
def test_no_graph_break_with_checkpointed_blocks(make: Callable[..., torch.nn.Module]) -> None:
    model = make(gradient_checkpointing=True, positions="rope", **({"depth": 4} if make is small_dit else {}))
    x, t = video(), steps()
    # Everything that dynamo has learnt of floats is forgotten: all of them are symbols in the first graph.
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend="eager")
    torch.testing.assert_close(compiled(x, t), model(x, t))


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
