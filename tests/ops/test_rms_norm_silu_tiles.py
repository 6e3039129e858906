"""The CUDA kernels' blocks without a GPU: their own source, played on the host, against float64."""

from __future__ import annotations

import ctypes
import shutil
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.checks import relative_error, unit_roundoff
from tests.native import compiled
from vdiff_fast.ops.rms_norm_silu import api, reference

BF16 = torch.bfloat16
A100_SHARED_BYTES = 163 << 10
pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="g++ is not on PATH")


@pytest.fixture(scope="module")
def tiles(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return compiled("rms_norm_tiles.cpp", tmp_path_factory.mktemp("tiles")).rms_norm_tiles


@dataclass
class Call:
    """(B, C, T, S) inputs of one call; the vectors are float32, as the launch makes them."""

    x: Tensor
    dy: Tensor
    vectors: dict[str, Tensor]
    last: bool
    silu: bool = True
    eps: float = 1e-6

    def play(self, tiles: Any, shared_bytes: int = A100_SHARED_BYTES) -> tuple[list[Tensor], list[int]]:
        """y and every gradient, and the backward's plan: NaN where a kernel writes nothing."""
        b, c, frames, space = self.x.shape
        x, dy = (t.movedim(1, -1).contiguous().movedim(-1, 1) if self.last else t for t in (self.x, self.dy))
        scale, shift = (self.vectors[k].shape[1] if k in self.vectors else 1 for k in ("scale", "shift"))
        segments = max(scale, shift)
        y, dx = torch.full_like(x, torch.nan), torch.full_like(x, torch.nan)
        names = ("weight", "scale", "shift")
        gradients = [torch.full((c,), torch.nan)] + [torch.full((b, f, c), torch.nan) for f in (scale, shift)]
        inputs, rstd = [self.vectors.get(k) for k in names], torch.full((b, frames * space), torch.nan)
        plan = (ctypes.c_int64 * 4)()
        for backward, output in enumerate((y, dx)):
            tensors = [x, dy, output, *inputs, rstd, *gradients]
            pointers = (ctypes.c_void_p * len(tensors))(*(None if t is None else t.data_ptr() for t in tensors))
            sizes = (ctypes.c_int64 * 11)(
                b, c, segments, frames * space // segments, scale, shift, int(self.last), int(self.silu),
                x.element_size(), backward, shared_bytes,
            )  # fmt: skip
            tiles(pointers, sizes, ctypes.c_double(self.eps), plan)
        return [y, dx, *(g for k, g in zip(names, gradients) if k in self.vectors)], list(plan)

    def expected(self, dtype: torch.dtype) -> list[Tensor]:
        x = self.x[..., None].to(dtype).requires_grad_()
        vectors = {k: v.to(dtype).requires_grad_() for k, v in self.vectors.items()}
        options = {k: v[:, 0] if k != "weight" and v.shape[1] == 1 else v for k, v in vectors.items()}
        y = reference.rms_norm_silu(x, eps=self.eps, activation="silu" if self.silu else "none", **options)
        dx, *rest = torch.autograd.grad(y, [x, *vectors.values()], self.dy[..., None].to(dtype))
        return [y[..., 0], dx[..., 0], *rest]


def _call(
    shape: tuple[int, ...],
    *,
    names: tuple[str, ...] = ("weight", "scale", "shift"),
    frames: int = 1,
    last: bool = False,
    dtype: torch.dtype = torch.float32,
    silu: bool = True,
    size: float = 1.0,
) -> Call:
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    sizes = {"weight": shape[1:2], "scale": (shape[0], frames, shape[1]), "shift": (shape[0], 1, shape[1])}
    vectors = {k: draw(*sizes[k]) for k in sizes if k in names}
    return Call((draw(*shape) * size).to(dtype), draw(*shape).to(dtype), vectors, last, silu)


CASES = {
    "clip": ((2, 12, 3, 40), {}),
    "odd": ((2, 11, 3, 35), {"names": ("weight",)}),
    "frames": ((2, 24, 3, 72), {"frames": 3}),
    "no_vectors": ((1, 96, 2, 130), {"names": (), "silu": False}),
    "wide": ((1, 1030, 1, 33), {}),
    "wide_and_even": ((1, 1536, 1, 64), {}),
    "one_channel": ((2, 1, 1, 64), {"names": ("weight",)}),
    "one_position": ((3, 64, 1, 1), {}),
    "many_positions": ((1, 16, 1, 9001), {"names": ("shift",)}),
}


def _assert_close(call: Call, tiles: Any, shared_bytes: int = A100_SHARED_BYTES) -> list[int]:
    exact, eager = call.expected(torch.float64), call.expected(call.x.dtype)
    actual, plan = call.play(tiles, shared_bytes)
    again, _ = call.play(tiles, shared_bytes)
    assert plan[2] <= shared_bytes
    for i, (a, e, g, same) in enumerate(zip(actual, exact, eager, again, strict=True)):
        allowed = 2 * max(relative_error(g, e), unit_roundoff(call.x.dtype))
        assert relative_error(a, e) <= allowed, (i, relative_error(a, e), allowed)
        assert torch.equal(a, same)
    return plan


@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("name", CASES)
def test_tiles_against_float64(tiles: Any, name: str, last: bool) -> None:
    shape, options = CASES[name]
    _assert_close(_call(shape, last=last, **options), tiles)


@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels_last"])
def test_bfloat16_against_float64(tiles: Any, last: bool) -> None:
    resident, aligned, *_ = _assert_close(_call((2, 96, 2, 520), last=last, dtype=BF16), tiles)
    assert resident
    assert aligned


@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels_last"])
def test_a_tile_that_shared_memory_cannot_hold_is_read_twice(tiles: Any, last: bool) -> None:
    resident, *_ = _assert_close(_call((1, 2304, 1, 40), last=last), tiles, 72 << 10)
    assert not resident


@pytest.mark.parametrize("size", [1e-4, 1e3])
def test_sizes_that_float16_squares_cannot_hold(tiles: Any, size: float) -> None:
    _assert_close(_call((1, 32, 1, 64), size=size), tiles)


@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels_last"])
def test_the_most_channels_fit_shared_memory(tiles: Any, last: bool) -> None:
    call = _call((1, api.MAX_CUDA_CHANNELS, 1, 3), names=("weight",), last=last)
    resident, _, shared_bytes, _ = _assert_close(call, tiles)
    assert not resident
    assert shared_bytes <= A100_SHARED_BYTES


def test_more_channels_are_refused_with_the_limit() -> None:
    x = torch.zeros(1, api.MAX_CUDA_CHANNELS + 1, 1)
    assert api.PREDICATES["cuda"](x) == "16385 channels > 16384, what a block holds the vectors of"
