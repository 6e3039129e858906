"""The CUDA kernels' blocks and clusters without a GPU: their own source, played on the host, against float64."""

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
from vdiff_fast.ops._layers import GROUP_NORM_LAYERS
from vdiff_fast.ops.group_norm_silu import reference

BF16 = torch.bfloat16
pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="g++ is not on PATH")


@dataclass(frozen=True)
class Device:
    """What the plan asks of a GPU; small ones make clusters and split statistics of small tensors."""

    multiprocessors: int
    shared_bytes: int
    clusters: bool

    def array(self) -> Any:
        return (ctypes.c_int64 * 3)(self.multiprocessors, self.shared_bytes, int(self.clusters))


H200 = Device(132, 227 << 10, True)
A100 = Device(108, 163 << 10, False)
# One block holds every unit; four to eight are needed; no cluster holds one.
ONE, CLUSTER, SPLIT = Device(1, 1 << 20, True), Device(1, 44 << 10, True), Device(108, 44 << 10, False)


@dataclass(frozen=True)
class Plan:
    resident: bool
    shares: int
    aligned: bool
    shared_bytes: int


@pytest.fixture(scope="module")
def blocks(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return compiled("group_norm_blocks.cpp", tmp_path_factory.mktemp("blocks"))


def _last(t: Tensor | None) -> Tensor | None:
    return None if t is None else t.movedim(1, -1).contiguous().movedim(-1, 1)


@dataclass
class Call:
    """(B, C, T, S) inputs of one call; the vectors are float32, as the launch makes them."""

    x: Tensor
    x2: Tensor | None
    dy: Tensor
    groups: int
    vectors: dict[str, Tensor]
    per_frame: bool
    last: bool
    silu: bool = True
    eps: float = 1e-5

    def sizes(self, backward: bool) -> Any:
        b, c1, frames, length = self.x.shape
        per_frame_vectors = [v.shape[1] for k, v in self.vectors.items() if k in ("scale", "shift")]
        segments = frames if self.per_frame or max(per_frame_vectors, default=1) > 1 else 1
        scale, shift = (self.vectors[k].shape[1] if k in self.vectors else 1 for k in ("scale", "shift"))
        c2 = 0 if self.x2 is None else self.x2.shape[1]
        return (ctypes.c_int64 * 13)(
            b, c1, c2, self.groups, segments, frames * length // segments, 1 if self.per_frame else segments,
            scale, shift, int(self.last), int(self.silu), self.x.element_size(), int(backward),
        )  # fmt: skip

    def play(self, blocks: Any, device: Device) -> tuple[list[Tensor], Plan]:
        """y and every gradient, and the forward's plan: NaN where a kernel writes nothing."""
        x, x2, dy = (_last(t) if self.last else t for t in (self.x, self.x2, self.dy))
        assert x is not None
        assert dy is not None
        channels, batch = dy.shape[1], x.shape[0]
        units = batch * (x.shape[2] if self.per_frame else 1)
        statistics = [torch.full((units * self.groups,), torch.nan) for _ in range(2)]
        y, dx = torch.full_like(dy, torch.nan), torch.full_like(x, torch.nan)
        dx2 = None if x2 is None else torch.full_like(x2, torch.nan)
        names = ("weight", "bias", "scale", "shift", "add")
        shapes = [(channels,), (channels,)] + [
            self.vectors[k].shape if k in self.vectors else (batch, 1, channels) for k in names[2:]
        ]
        gradients = [torch.full(shape, torch.nan) for shape in shapes]
        vectors = [self.vectors.get(k) for k in names]
        plans = []
        for backward in (False, True):
            outputs = (dx, dx2) if backward else (y, None)
            tensors = [x, x2, dy, *outputs, *vectors, *statistics, *gradients]
            pointers = (ctypes.c_void_p * len(tensors))(*(None if t is None else t.data_ptr() for t in tensors))
            plan = (ctypes.c_int64 * 4)()
            blocks.group_norm_blocks(pointers, self.sizes(backward), ctypes.c_double(self.eps), device.array(), plan)
            plans.append(Plan(bool(plan[0]), plan[1], bool(plan[2]), plan[3]))
            assert plan[3] <= device.shared_bytes
        wanted = [g for k, g in zip(names, gradients) if k in self.vectors]
        return [y, dx, *([] if dx2 is None else [dx2]), *wanted], plans[0]

    def expected(self, dtype: torch.dtype) -> list[Tensor]:
        def leaf(t: Tensor) -> Tensor:
            return t.to(dtype).requires_grad_()

        x, x2 = leaf(self.x[..., None]), None if self.x2 is None else leaf(self.x2[..., None])
        vectors = {k: leaf(v) for k, v in self.vectors.items()}
        options = {k: v[:, 0] if k in ("scale", "shift") and v.shape[1] == 1 else v for k, v in vectors.items()}
        y = reference.group_norm_silu(
            x, self.groups, eps=self.eps, x2=x2, per_frame=self.per_frame,
            activation="silu" if self.silu else "none", **options,
        )  # fmt: skip
        leaves = [x, *([] if x2 is None else [x2]), *vectors.values()]
        dx = torch.autograd.grad(y, leaves, self.dy[..., None].to(dtype))
        count = 1 if x2 is None else 2
        return [y[..., 0], *(g[..., 0] for g in dx[:count]), *dx[count:]]


def _call(
    shape: tuple[int, ...],
    groups: int,
    *,
    channels2: int = 0,
    dtype: torch.dtype = torch.float32,
    per_frame: bool = False,
    frames: int = 0,
    names: tuple[str, ...] = ("weight", "bias"),
    last: bool = False,
    silu: bool = True,
    mean: float = 0.0,
    deviation: float = 1.0,
) -> Call:
    generator = torch.Generator().manual_seed(0)

    def draw(*size: int) -> Tensor:
        return torch.randn(size, generator=generator)

    channels, batch = shape[1] + channels2, shape[0]
    sizes = {
        "weight": (channels,), "bias": (channels,), "scale": (batch, frames or 1, channels),
        "shift": (batch, 1, channels), "add": (batch, channels),
    }  # fmt: skip
    return Call(
        (draw(*shape) * deviation + mean).to(dtype),
        (draw(batch, channels2, *shape[2:]) * deviation + mean).to(dtype) if channels2 else None,
        draw(batch, channels, *shape[2:]).to(dtype), groups, {k: draw(*sizes[k]) for k in sizes if k in names},
        per_frame, last, silu,
    )  # fmt: skip


EVERYTHING = ("weight", "bias", "scale", "shift", "add")
CASES = {
    "clip": ((2, 12, 3, 40), 4, {}),
    "per_frame": ((2, 12, 3, 64), 4, {"per_frame": True}),
    "odd_length": ((2, 6, 3, 35), 3, {"per_frame": True}),
    "long_rows": ((1, 20, 1, 4096), 2, {}),
    "longer_odd_rows": ((1, 3, 1, 16411), 1, {"silu": False}),
    "skip": ((2, 8, 2, 48), 2, {"channels2": 16, "names": EVERYTHING}),
    "skip_straddles_a_pack": ((2, 6, 2, 45), 2, {"channels2": 10, "names": EVERYTHING}),
    "frames_of_one_clip": ((2, 16, 3, 72), 2, {"frames": 3, "names": EVERYTHING}),
    "frames": ((2, 16, 3, 72), 4, {"frames": 3, "names": EVERYTHING, "per_frame": True}),
    "one_position": ((3, 24, 1, 1), 4, {}),
    "one_per_group": ((2, 24, 1, 50), 24, {"names": ()}),
    "ten_per_group": ((2, 320, 1, 64), 32, {"names": EVERYTHING}),
    "many_channels_in_a_group": ((1, 1200, 1, 24), 2, {"names": EVERYTHING}),
}


def _assert_close(call: Call, blocks: Any, device: Device) -> Plan:
    exact, eager = call.expected(torch.float64), call.expected(call.x.dtype)
    actual, plan = call.play(blocks, device)
    again, _ = call.play(blocks, device)
    for i, (a, e, g, same) in enumerate(zip(actual, exact, eager, again, strict=True)):
        allowed = 2 * max(relative_error(g, e), unit_roundoff(call.x.dtype))
        assert relative_error(a, e) <= allowed, (i, relative_error(a, e), allowed, plan)
        assert torch.equal(a, same)
    return plan


@pytest.mark.parametrize("device", [ONE, CLUSTER, SPLIT], ids=["one", "cluster", "split"])
@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("name", CASES)
def test_blocks_against_float64(blocks: Any, name: str, last: bool, device: Device) -> None:
    shape, groups, options = CASES[name]
    _assert_close(_call(shape, groups, last=last, **options), blocks, device)


@pytest.mark.parametrize("device", [ONE, CLUSTER, SPLIT], ids=["one", "cluster", "split"])
@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels_last"])
def test_bfloat16_against_float64(blocks: Any, last: bool, device: Device) -> None:
    call = _call((2, 40, 2, 520), 4, channels2=24, names=EVERYTHING, last=last, dtype=BF16)
    assert _assert_close(call, blocks, device).aligned


@pytest.mark.parametrize("device", [ONE, CLUSTER, SPLIT], ids=["one", "cluster", "split"])
@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels_last"])
def test_mean_10000_and_deviation_one_tenth_keep_their_digits(blocks: Any, last: bool, device: Device) -> None:
    call = _call((1, 16, 1, 2048), 2, names=(), last=last, mean=1e4, deviation=0.1)
    (y, dx), _ = call.play(blocks, device)
    x = call.x.double().requires_grad_()
    units = x.reshape(2, -1)
    centered = units - units.mean(-1, keepdim=True)
    normed = centered / (centered.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    exact = torch.nn.functional.silu(normed.reshape(x.shape))
    (exact_dx,) = torch.autograd.grad(exact, x, call.dy.double())
    assert relative_error(y, exact) < 2e-7
    assert relative_error(dx, exact_dx) < 1e-2  # the mean is saved in float32


def test_devices_make_the_three_ways(blocks: Any) -> None:
    """What the tests above are meant to reach: one block, clusters of several sizes, split statistics."""
    call = _call(*CASES["long_rows"][:2])
    plans = [call.play(blocks, device)[1] for device in (ONE, Device(1, 200 << 10, True), CLUSTER, SPLIT)]
    assert [p.resident for p in plans] == [True, True, True, False]
    assert plans[0].shares == 1
    assert 1 < plans[1].shares < plans[2].shares <= 8
    assert all(p.aligned for p in plans)


def _plan(blocks: Any, call_sizes: Any, device: Device) -> Plan:
    plan = (ctypes.c_int64 * 4)()
    blocks.group_norm_plan(call_sizes, device.array(), plan)
    return Plan(bool(plan[0]), plan[1], bool(plan[2]), plan[3])


@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("layer", GROUP_NORM_LAYERS, ids=lambda layer: layer.name)
def test_layers_of_models_are_read_once_where_a_cluster_holds_them(
    blocks: Any, layer: Any, last: bool, backward: bool
) -> None:
    batch, channels, *space = layer.shape
    frames = space[0] if layer.per_frame else 1
    length = torch.Size(space).numel() // frames
    sizes = (ctypes.c_int64 * 13)(
        batch, channels, 0, layer.num_groups, frames, length, 1, 1, 1, int(last), 1, 2, int(backward)
    )
    on_h200, on_a100 = _plan(blocks, sizes, H200), _plan(blocks, sizes, A100)
    assert on_h200.aligned
    assert on_h200.shared_bytes <= H200.shared_bytes
    assert on_a100.shared_bytes <= A100.shared_bytes
    assert not on_a100.resident or on_a100.shares == 1
    unit = 2 * channels // layer.num_groups * length * (2 if backward else 1)
    if not last:
        assert on_h200.resident == (unit < 1.75 * 2**20)
