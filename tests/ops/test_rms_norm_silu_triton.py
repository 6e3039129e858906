"""What is special to the Triton kernels of rms_norm_silu: more channels than a tile holds, several tiles a program."""

from __future__ import annotations

import importlib
from typing import Any

import pytest
import torch

import vdiff_fast as vf
from tests.checks import assert_as_close_as_eager
from vdiff_fast.ops.rms_norm_silu import config
from vdiff_fast.ops.rms_norm_silu.spec import SPEC

CPU = torch.device("cpu")
SAMPLES = [s for s in SPEC.samples(CPU, torch.float32) if s.args[0].numel()]
TILES = {"two_reads": config.TileConfig(4, 16, 1), "three_tiles": config.TileConfig(128, 16, 1, tiles=3)}
# Several tiles a program hold every channel: with more channels than a tile, a program has one tile.
FORCED = [(i, s.name) for i, t in TILES.items() for s in SAMPLES if t.tiles == 1 or s.args[0].shape[1] <= t.block_c]


@pytest.mark.interpreter
@pytest.mark.parametrize(("tile_name", "name"), FORCED)
def test_forced_tiles(tile_name: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    tile = TILES[tile_name]
    module: Any = importlib.import_module("vdiff_fast.ops.rms_norm_silu.triton")
    monkeypatch.setattr(module, "tile_config", lambda *args: _forward_has_one_tile(tile, *args))
    sample = next(s for s in SAMPLES if s.name == name)
    with vf.use_backend("triton", ops=[SPEC.name]):
        assert_as_close_as_eager(SPEC, sample, torch.float32)


def _forward_has_one_tile(tile: config.TileConfig, *shape: Any) -> config.TileConfig:
    backward = shape[-1]
    return tile if backward else config.TileConfig(tile.block_c, tile.block_r, tile.num_warps)


@pytest.mark.interpreter
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_half_precision_neither_underflows_nor_overflows(dtype: torch.dtype) -> None:
    """F.normalize in float16 gives zeros below 2e-4 and infinity above a few hundred."""
    x = torch.randn(1, 64, 2, 3, generator=torch.Generator().manual_seed(0))
    with vf.use_backend("triton", ops=[SPEC.name]):
        for magnitude in (1e-4, 1e4):
            y = vf.ops.rms_norm_silu((x * magnitude).to(dtype), eps=1e-12, activation="none")
            mean_square = y.float().square().mean(1)
            torch.testing.assert_close(mean_square, torch.ones_like(mean_square), rtol=5e-3, atol=0)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("channels", [1, 16, 96, 320, 1280, 5000])
def test_a_tile_is_chosen_for_any_width(channels: int, backward: bool, channels_last: bool) -> None:
    tile = config.tile_config(channels, 4, 1000, channels_last, backward)
    assert tile.chunks(1000) * tile.block_r * tile.tiles >= 1000
    assert tile.tiles == 1 or tile.block_c >= channels
