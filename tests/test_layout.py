"""Everything in layout.py is a view of channels-last memory, size-1 dimensions included."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from vdiff_fast import layout

SHAPES = [(2, 6, 4, 5, 3), (1, 6, 1, 5, 3), (2, 1, 4, 5, 3), (1, 6, 1, 1, 1), (3, 4, 2, 1, 7)]


def _video(shape: tuple[int, ...]) -> torch.Tensor:
    return torch.randn(shape).contiguous(memory_format=torch.channels_last_3d)


@pytest.mark.parametrize("shape", SHAPES)
def test_round_trips_are_views(shape: tuple[int, ...]) -> None:
    x = _video(shape)
    frames, tokens = layout.as_frames(x), layout.as_tokens(x)
    assert frames.data_ptr() == x.data_ptr()
    assert tokens.data_ptr() == x.data_ptr()
    assert tokens.is_contiguous()
    assert torch.equal(layout.as_video(frames, shape[0], shape[2]), x)
    assert torch.equal(layout.from_tokens(tokens, *shape[3:]), x)
    assert torch.equal(frames[-1], x[-1, :, -1])


@pytest.mark.parametrize("shape", SHAPES)
def test_canonical_strides_keep_torch_in_channels_last(shape: tuple[int, ...]) -> None:
    frames = layout.canonical(layout.as_frames(_video(shape)))
    up = F.interpolate(frames, scale_factor=2, mode="nearest")
    assert layout.is_channels_last(up)
    assert frames.data_ptr() == layout.canonical(frames).data_ptr()


def test_canonical_of_another_layout_copies_once() -> None:
    x = torch.randn(2, 6, 4, 5, 3)
    assert torch.equal(layout.canonical(x), x)
    assert layout.is_channels_last(layout.canonical(x))


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last_3d])
def test_expanded_gradients_take_the_layout_of_x(memory_format: torch.memory_format) -> None:
    x = torch.randn(2, 6, 4, 5, 3).contiguous(memory_format=memory_format)
    gradient = torch.ones(()).expand(x.shape)
    laid_out = layout.laid_out_like(gradient, x)
    assert laid_out.stride() == x.stride()
    assert torch.equal(laid_out, gradient)


def test_native_copies_only_what_is_in_neither_layout() -> None:
    x = torch.randn(2, 6, 4, 5)
    assert layout.native(x) is x
    last = x.contiguous(memory_format=torch.channels_last)
    assert layout.native(last) is last
    sliced = last[:, :, ::2]
    assert layout.is_channels_last(layout.native(sliced))
    assert layout.native(x[:, :, :, ::2]).is_contiguous()
