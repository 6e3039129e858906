"""Triton kernels to compile ahead of time: every tile that config.py can choose, all options on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from vdiff_fast._spec import AotCase
from vdiff_fast.ops.group_norm_silu import config
from vdiff_fast.ops.group_norm_silu.config import Tile

_SOURCE = ("x", "x2", "add")
_VECTORS = ("weight", "bias", "scale", "shift")
_GRADIENTS = ("dweight", "dbias", "dscale", "dshift")
_ACTIVATIONS = ("x", "x2", "y", "dy", "dx", "dx2")
_POINTERS = {
    "resident_forward_kernel": (*_SOURCE, *_VECTORS, "y", "mean", "rstd"),
    "resident_backward_kernel": ("dy", *_SOURCE, *_VECTORS, *_GRADIENTS, "mean", "rstd", "dx", "dx2", "dadd"),
    "statistics_kernel": (*_SOURCE, "partial_mean", "partial_m2"),
    "combine_statistics_kernel": (*_SOURCE, "partial_mean", "partial_m2", "mean", "rstd"),
    "apply_kernel": (*_SOURCE, *_VECTORS, "y", "mean", "rstd"),
    "backward_sums_kernel": (
        "dy", *_SOURCE, *_VECTORS, "mean", "rstd", "partial_dp", "partial_dp_xhat",
    ),
    "combine_sums_kernel": (
        "partial_dp", "partial_dp_xhat", *_VECTORS, "mean_g", "mean_g_xhat", *_GRADIENTS,
    ),
    "backward_apply_kernel": (
        "dy", *_SOURCE, *_VECTORS, "mean", "rstd", "mean_g", "mean_g_xhat", "dx", "dx2", "partial_dadd",
    ),
}  # fmt: skip
_SIZES = (
    "C1", "C2", "positions", "length", "group_channels", "num_groups", "slab_channels", "segments_per_sample",
    "segments_per_unit", "segments_per_scale", "segments_per_shift", "chunks", "tiles", "chunk_length", "channels",
)  # fmt: skip
_AFFINE_FLAGS = ("HAS_WEIGHT", "HAS_BIAS", "HAS_SCALE", "HAS_SHIFT")
_TILED = (
    "resident_forward_kernel", "resident_backward_kernel",
    "apply_kernel", "backward_sums_kernel", "backward_apply_kernel",
)  # fmt: skip


def _signature(activation: str, vector: str) -> dict[str, str]:
    types = dict.fromkeys((f"{name}_ptr" for names in _POINTERS.values() for name in names), "*fp32")
    types |= {f"{name}_ptr": f"*{activation}" for name in _ACTIVATIONS}
    types |= {f"{name}_ptr": f"*{vector}" for name in (*_VECTORS, "add", "dscale", "dshift")}
    return types | dict.fromkeys(_SIZES, "i32") | {"eps": "fp32"}


def _case(
    kernel: str,
    name: str,
    constants: Mapping[str, int | bool],
    num_warps: int,
    *,
    dtype: str = "bf16",
    wide: bool = False,
) -> AotCase:
    """All options on. `wide`: one source, sizes divisible by 16; else two sources, sizes that divide by nothing."""
    flags: dict[str, int | bool] = dict(constants)
    if kernel != "combine_sums_kernel":
        flags |= {"HAS_X2": not wide, "HAS_ADD": True}
    if kernel not in ("statistics_kernel", "combine_statistics_kernel"):
        flags |= dict.fromkeys(_AFFINE_FLAGS, True)
    if kernel in _TILED:
        flags |= {"SILU": True}
    sizes = ("C1", "positions", "length", "slab_channels") if wide else ()
    return AotCase(
        name=f"group_norm_silu_{kernel}_{name}_{dtype}{'_wide' if wide else ''}",
        kernel=kernel,
        signature=_signature(dtype, "fp32" if dtype == "fp32" else "bf16"),
        constants=flags,
        divisible=(*(f"{p}_ptr" for p in _POINTERS[kernel]), *sizes),
        num_warps=num_warps,
    )


def _tile(tile: Tile, channels_last: bool) -> tuple[str, dict[str, int | bool]]:
    name = f"{tile.block_c}x{tile.block_r}{'_channels_last' if channels_last else ''}"
    return name, {"BLOCK_C": tile.block_c, "BLOCK_R": tile.block_r, "CHANNELS_LAST": channels_last}


def _resident(channels_last: bool, backward: bool) -> Iterator[AotCase]:
    kernel = f"resident_{'backward' if backward else 'forward'}_kernel"
    for wide in (False, True):
        for tile in config.resident_tiles(channels_last, backward, wide):
            name, constants = _tile(tile, channels_last)
            constants |= {"BLOCK_K": config.GROUP_ROWS[-1] if channels_last else 1}
            for dtype in ("bf16", "fp32") if tile.block_c >= 32 else ("bf16",):
                yield _case(kernel, name, constants, tile.num_warps, dtype=dtype, wide=wide)


def _split(channels_last: bool) -> Iterator[AotCase]:
    for tile in config.split_tiles(channels_last):
        name, constants = _tile(tile, channels_last)
        for kernel in ("statistics_kernel", *_TILED[2:]):
            yield _case(kernel, name, constants, tile.num_warps)
    for kernel in ("statistics_kernel", *_TILED[2:]):
        yield _case(kernel, name, constants, tile.num_warps, dtype="fp32")


def aot() -> Iterator[AotCase]:
    for channels_last in (False, True):
        yield from _resident(channels_last, backward=False)
        yield from _resident(channels_last, backward=True)
        yield from _split(channels_last)
    statistics = {"CHANNELS_LAST": True, "BLOCK": config.COMBINE_ENTRIES}
    yield _case("combine_statistics_kernel", "channels_last", statistics, 4)
    sums = {"BLOCK_D": config.COMBINE_CHANNELS, "BLOCK_CHUNKS": config.COMBINE_CHUNKS}
    yield _case("combine_sums_kernel", "full", sums, 4)
