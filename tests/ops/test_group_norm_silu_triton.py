"""What is special to the Triton kernels of group_norm_silu: both strategies agree, on every tile that can be chosen."""

from __future__ import annotations

import importlib
import math
from typing import Any

import pytest
import torch

import vdiff_fast as vf
from tests.checks import assert_as_close_as_eager, fresh, relative_error, run, unit_roundoff
from vdiff_fast._spec import Sample
from vdiff_fast.ops.group_norm_silu import config
from vdiff_fast.ops.group_norm_silu.config import Geometry, Resident, Split
from vdiff_fast.ops.group_norm_silu.spec import SPEC

CPU = torch.device("cpu")
SAMPLES = [s.name for s in SPEC.samples(CPU, torch.float32) if s.args[0].numel()]


def _sample(name: str, dtype: torch.dtype = torch.float32) -> Sample:
    return next(s for s in SPEC.samples(CPU, dtype) if s.name == name)


def _force(monkeypatch: pytest.MonkeyPatch, chosen: Resident | Split) -> list[Geometry]:
    seen: list[Geometry] = []

    def choose(shape: Geometry, backward: bool) -> Resident | Split:
        seen.append(shape)
        return chosen

    monkeypatch.setattr(config, "choose", choose)
    return seen


@pytest.mark.interpreter
# One tile or three a program in turn: what both layouts have meets both.
@pytest.mark.parametrize(("name", "tiles"), [(name, 3 if i % 2 else 1) for i, name in enumerate(SAMPLES)])
def test_split_statistics(name: str, tiles: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks of 16 or 48 positions, slabs of 4 channels: tails, straddled groups, several chunks."""
    seen = _force(monkeypatch, Split(config.Tile(4, 16, 1), tiles))
    with vf.use_backend("triton", ops=[SPEC.name]):
        assert_as_close_as_eager(SPEC, _sample(name), torch.float32)
    # Forward and backward, of every draw that the sample was judged by.
    assert seen
    assert len(seen) % 2 == 0


@pytest.mark.interpreter
def test_float32_is_as_close_as_eager_on_average() -> None:
    logarithms = []
    for name in SAMPLES:
        exact, eager = (run(SPEC.reference, fresh(_sample(name), d), torch.float32) for d in (torch.float64, None))
        with vf.use_backend("triton", ops=[SPEC.name]):
            fused = run(SPEC.function, fresh(_sample(name)), torch.float32)
        for e, g, f in zip(*(outputs + gradients for outputs, gradients in (exact, eager, fused))):
            eager_error = max(relative_error(g, e), unit_roundoff(torch.float32))
            logarithms.append(math.log(max(relative_error(f, e), 1e-12) / eager_error))
    assert math.exp(sum(logarithms) / len(logarithms)) <= 1.0


@pytest.mark.interpreter
def test_offsets_of_one_outlier_do_not_spoil_the_variance(monkeypatch: pytest.MonkeyPatch) -> None:
    """The pivot of the split statistics is the unit's first value, here a million deviations away."""
    _force(monkeypatch, Split(config.Tile(2, 16, 1), 2))
    module: Any = importlib.import_module("vdiff_fast.ops.group_norm_silu.triton")
    x = torch.randn(1, 4, 200, generator=torch.Generator().manual_seed(0))
    x[0, 0, 0] = 1e6
    _, mean, rstd = module.forward(x, None, 2, None, None, 1e-5, None, None, None, False, True)
    groups = x.double().reshape(2, -1)
    exact_rstd = (groups.var(1, unbiased=False) + 1e-5).rsqrt()
    assert ((mean[0] - groups.mean(1)) * exact_rstd).abs().max() < 2e-6
    torch.testing.assert_close(rstd[0].double(), exact_rstd, rtol=2e-6, atol=0)


def _shape(**changes: Any) -> Geometry:
    base: dict[str, Any] = {
        "samples": 2, "channels": 320, "channels2": 0, "positions": 64, "num_groups": 32, "segments_per_sample": 1,
        "segments_per_unit": 1, "segments_per_scale": 1, "segments_per_shift": 1, "channels_last": False,
    }  # fmt: skip
    return Geometry(**(base | changes))


@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("channels", [32, 96, 320, 1280, 2560])
@pytest.mark.parametrize("positions", [1, 64, 63, 1024, 4096, 20 * 64 * 64])
def test_chosen_tile_covers_the_call(channels: int, positions: int, channels_last: bool, backward: bool) -> None:
    shape = _shape(channels=channels, positions=positions, channels_last=channels_last)
    chosen = config.choose(shape, backward)
    if isinstance(chosen, Resident):
        assert chosen.groups * shape.group_channels <= chosen.tile.block_c
        assert shape.length <= chosen.tile.block_r
        assert chosen.programs(shape) * chosen.groups >= shape.units * shape.num_groups
    else:
        assert chosen.chunks(shape) * chosen.chunk >= shape.length
        assert chosen.programs(shape) * chosen.chunk * chosen.tile.block_c >= shape.segments * shape.length * channels


def test_a_unit_that_registers_hold_is_read_once() -> None:
    assert isinstance(config.choose(_shape(positions=1024, channels=320), backward=False), Resident)
    assert isinstance(config.choose(_shape(positions=128, channels_last=True), backward=False), Resident)
    assert isinstance(config.choose(_shape(positions=65536), backward=False), Split)


def test_tile_offsets_stay_below_two_to_the_31() -> None:
    huge = _shape(positions=2**30, channels=64, num_groups=32)
    chosen = config.choose(huge, backward=False)
    assert isinstance(chosen, Split)
    assert chosen.tile.block_c * huge.positions < 2**31
