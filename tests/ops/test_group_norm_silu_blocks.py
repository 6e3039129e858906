"""The CUDA kernels' blocks and clusters without a GPU: their own source, played on the host, against float64."""

from __future__ import annotations

import ctypes
import itertools
import shutil
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.checks import relative_error, unit_roundoff
from tests.native import compiled
from vdiff_fast.ops._common.cases.layers import GROUP_NORM_LAYERS
from vdiff_fast.ops.group_norm_silu import reference

BF16 = torch.bfloat16
pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="g++ is not on PATH")


@dataclass(frozen=True)
class Device:
    """What the plan asks of a GPU; small ones make clusters, grids and split statistics of small tensors."""

    multiprocessors: int
    shared_bytes: int
    clusters: bool = False
    cooperative: bool = False

    def array(self) -> Any:
        return (ctypes.c_int64 * 4)(
            self.multiprocessors, self.shared_bytes, int(self.clusters), int(self.cooperative)
        )  # fmt: skip


H200 = Device(132, 227 << 10, True, True)
A100 = Device(108, 163 << 10, cooperative=True)
# One block holds every unit; four to eight are needed; no cluster holds one, no grid either.
ONE, CLUSTER, SPLIT = Device(1, 1 << 20, True), Device(1, 44 << 10, True), Device(108, 44 << 10)
GRID = Device(12, 64 << 10, cooperative=True)


@dataclass(frozen=True)
class Plan:
    exchange: str
    slices: int
    aligned: bool
    shared_bytes: int
    tiles_at_once: int
    buffers: int
    iterations: int


def _plan_of(plan: Any) -> Plan:
    return Plan(("cluster", "grid", "split")[plan[0]], plan[1], bool(plan[2]), *plan[3:])


@dataclass(frozen=True)
class Play:
    """How the blocks of a grid are played.

    `eager`: copies land at once, not as late as they may. `held`: blocks that run at once, 0 for all that the device
    holds. `patience`: milliseconds until they are stuck. `one_buffer`: copies for the second buffer land in the first.
    """

    eager: bool = False
    held: int = 0
    patience: int = 60000
    one_buffer: bool = False

    def array(self) -> Any:
        return (ctypes.c_int64 * 4)(int(self.eager), self.held, self.patience, int(self.one_buffer))


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

    def play(self, blocks: Any, device: Device, play: Play = Play()) -> tuple[list[Tensor], list[Plan]]:
        """y and every gradient, NaN where a kernel writes nothing, and the plans of both directions.

        Raises:
            TimeoutError: blocks of a grid wait for others that cannot start.
        """
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
            plan = (ctypes.c_int64 * 7)()
            sizes, eps = self.sizes(backward), ctypes.c_double(self.eps)
            if not blocks.group_norm_blocks(pointers, sizes, eps, device.array(), play.array(), plan):
                raise TimeoutError
            plans.append(_plan_of(plan))
            assert plan[3] <= device.shared_bytes
        wanted = [g for k, g in zip(names, gradients) if k in self.vectors]
        return [y, dx, *([] if dx2 is None else [dx2]), *wanted], plans

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
# Larger units on small devices, so that only a grid holds one, in both layouts and directions.
GRID_CASES = {
    "clip": (Device(8, 100 << 10, cooperative=True), (7, 12, 3, 1400), 2, {"names": EVERYTHING}),
    "per_frame": (Device(16, 200 << 10, cooperative=True), (2, 32, 3, 2501), 2, {"per_frame": True}),
    "skip": (Device(12, 160 << 10, cooperative=True), (5, 16, 1, 3000), 2, {"channels2": 16, "names": EVERYTHING}),
    "skip_straddles_a_pack": (
        Device(8, 120 << 10, cooperative=True), (4, 16, 2, 1345), 2, {"channels2": 10, "names": EVERYTHING},
    ),
    "frames_of_one_clip": (
        Device(8, 200 << 10, cooperative=True), (3, 16, 3, 1100), 2, {"frames": 3, "names": EVERYTHING},
    ),
    "odd_frames_of_one_clip": (
        Device(6, 200 << 10, cooperative=True), (3, 48, 3, 1001), 3, {"frames": 3, "names": EVERYTHING},
    ),
    "ten_per_group": (Device(16, 80 << 10, cooperative=True), (4, 80, 1, 2048), 8, {"names": EVERYTHING}),
    "one_group_in_the_last_tile": (Device(16, 160 << 10, cooperative=True), (4, 36, 1, 1501), 3, {}),
    "one_group": (Device(6, 200 << 10, cooperative=True), (5, 600, 1, 72), 1, {"silu": False}),
    "many_channels_in_a_group": (
        Device(8, 160 << 10, cooperative=True), (3, 1200, 1, 64), 2, {"names": EVERYTHING},
    ),
}  # fmt: skip


def _assert_close(call: Call, blocks: Any, device: Device, *others: Play) -> list[Plan]:
    """`others`: plays that must give the same bits."""
    exact, eager = call.expected(torch.float64), call.expected(call.x.dtype)
    actual, plans = call.play(blocks, device)
    for i, (a, e, g) in enumerate(zip(actual, exact, eager, strict=True)):
        allowed = 2 * max(relative_error(g, e), unit_roundoff(call.x.dtype))
        assert relative_error(a, e) <= allowed, (i, relative_error(a, e), allowed, plans)
    for play in (Play(), *others):
        again, _ = call.play(blocks, device, play)
        assert all(torch.equal(a, same) for a, same in zip(actual, again, strict=True))
    return plans


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
    assert all(plan.aligned for plan in _assert_close(call, blocks, device))


@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("name", GRID_CASES)
def test_grids_against_float64(blocks: Any, name: str, last: bool) -> None:
    device, shape, groups, options = GRID_CASES[name]
    plans = _assert_close(_call(shape, groups, last=last, **options), blocks, device, Play(eager=True))
    assert [plan.exchange for plan in plans] == ["grid", "grid"]


@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels_last"])
def test_bfloat16_grids_against_float64(blocks: Any, last: bool) -> None:
    call = _call((4, 40, 1, 5200), 4, channels2=24, names=EVERYTHING, last=last, dtype=BF16)
    plans = _assert_close(call, blocks, Device(16, 120 << 10, cooperative=True), Play(eager=True))
    assert [(plan.exchange, plan.aligned) for plan in plans] == [("grid", True)] * 2


@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels_last"])
def test_a_grid_of_the_h200_against_float64(blocks: Any, last: bool) -> None:
    plans = _assert_close(_call((3, 16, 1, 40000), 1, last=last), blocks, H200)
    assert [plan.exchange for plan in plans] == ["grid", "grid"]


def test_grid_cases_reach_every_kind_of_grid(blocks: Any) -> None:
    """One buffer and two, several tiles at once, more iterations than buffers, in both layouts and directions."""
    kinds = set()
    for device, shape, groups, options in GRID_CASES.values():
        for last in (False, True):
            call = _call(shape, groups, last=last, **options)
            for backward in (False, True):
                plan = _plan(blocks, call.sizes(backward), device)
                kinds.add((last, backward, plan.buffers, plan.iterations > plan.buffers))
                kinds.add((last, backward, "tiles_at_once", plan.tiles_at_once > 1))
    wanted = itertools.product((False, True), (False, True), ((1, True), (2, True), ("tiles_at_once", True)))
    assert {(last, backward, *kind) for last, backward, kind in wanted} <= kinds


def test_a_grid_with_too_few_multiprocessors_is_stuck(blocks: Any) -> None:
    """The blocks really wait for each other: one that cannot start stops all, so a plan may not exceed the device."""
    device, shape, groups, options = GRID_CASES["one_group"]
    call = _call(shape, groups, **options)
    _, (plan, _) = call.play(blocks, device)
    assert plan.tiles_at_once == 1
    with pytest.raises(TimeoutError):
        call.play(blocks, device, Play(held=plan.slices - 1, patience=500))


def test_a_buffer_filled_too_early_is_seen(blocks: Any) -> None:
    """Copies for the second buffer land in the first, whose unit still waits for its sums."""
    device, shape, groups, options = GRID_CASES["frames_of_one_clip"]
    call = _call(shape, groups, **options)
    (y, *_), plans = call.play(blocks, device, Play(eager=True))
    assert plans[0].buffers == 2
    (wrong, *_), _ = call.play(blocks, device, Play(eager=True, one_buffer=True))
    assert relative_error(wrong, y) > 0.1


@pytest.mark.parametrize("device", [ONE, CLUSTER, GRID, SPLIT], ids=["one", "cluster", "grid", "split"])
@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels_last"])
def test_mean_10000_and_deviation_one_tenth_keep_their_digits(blocks: Any, last: bool, device: Device) -> None:
    call = _call((1, 16, 1, 2048), 2, names=(), last=last, mean=1e4, deviation=0.1)
    (y, dx), plans = call.play(blocks, device)
    assert ("grid" in {plan.exchange for plan in plans}) == (device is GRID)
    x = call.x.double().requires_grad_()
    units = x.reshape(2, -1)
    centered = units - units.mean(-1, keepdim=True)
    normed = centered / (centered.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    exact = torch.nn.functional.silu(normed.reshape(x.shape))
    (exact_dx,) = torch.autograd.grad(exact, x, call.dy.double())
    assert relative_error(y, exact) < 2e-7
    assert relative_error(dx, exact_dx) < 1e-2  # the mean is saved in float32


def test_devices_make_the_three_exchanges(blocks: Any) -> None:
    """What the tests above are meant to reach: one block, clusters of several sizes, split statistics."""
    call = _call(*CASES["long_rows"][:2])
    plans = [call.play(blocks, device)[1][0] for device in (ONE, Device(1, 200 << 10, True), CLUSTER, SPLIT)]
    assert [p.exchange for p in plans] == ["cluster", "cluster", "cluster", "split"]
    assert plans[0].slices == 1
    assert 1 < plans[1].slices < plans[2].slices <= 8
    assert all(p.aligned for p in plans)


def _plan(blocks: Any, call_sizes: Any, device: Device) -> Plan:
    plan = (ctypes.c_int64 * 7)()
    blocks.group_norm_plan(call_sizes, device.array(), plan)
    return _plan_of(plan)


@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("layer", GROUP_NORM_LAYERS, ids=lambda layer: layer.name)
def test_layers_of_models_are_read_once_where_the_chip_holds_a_unit(
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
    for plan, device in ((on_h200, H200), (on_a100, A100)):
        held = (device.shared_bytes + 1024) // (plan.shared_bytes + 1024) * device.multiprocessors
        assert plan.exchange != "grid" or plan.slices * plan.tiles_at_once <= held
    assert on_a100.exchange != "cluster" or on_a100.slices == 1
    unit = 2 * channels // layer.num_groups * length * (2 if backward else 1)
    if not last:
        assert on_h200.exchange == ("cluster" if unit < 1.75 * 2**20 else "grid")
        assert on_h200.buffers == 1 or unit < 13 * 2**20


@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels_last"])
def test_units_grow_from_a_block_to_a_cluster_a_grid_and_two_kernels(blocks: Any, last: bool, backward: bool) -> None:
    """What holds units of 16 bfloat16 channels, each a group tile, as they grow; the grid keeps two while it can."""
    found = []
    for kilobytes in (64, 1000, 4000, 7000, 16000, 40000):
        sizes = (ctypes.c_int64 * 13)(
            4, 512, 0, 16, 1, (kilobytes << 10) // (128 if backward else 64), 1, 1, 1, int(last), 1, 2, int(backward)
        )
        plan = _plan(blocks, sizes, H200)
        found.append((plan.exchange, plan.buffers))
    assert found == [("cluster", 1), ("cluster", 1), ("grid", 2), ("grid", 2), ("grid", 1), ("split", 1)]
