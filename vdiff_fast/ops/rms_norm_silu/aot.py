"""Triton kernels to compile ahead of time: every tile that config.py can choose, all options on."""

from __future__ import annotations

from collections.abc import Iterator

from vdiff_fast._spec import AotCase
from vdiff_fast.ops.rms_norm_silu import config

_POINTERS = {
    "forward_kernel": ("x", "weight", "scale", "shift", "y", "rstd"),
    "backward_kernel": (
        "dy", "x", "weight", "rstd", "scale", "shift", "dx", "partial_dp", "partial_dp_xhat",
    ),
}  # fmt: skip
_SIZES = (
    "channels", "positions", "length", "segments_per_sample", "segments_per_scale", "segments_per_shift", "chunks",
    "tiles",
)  # fmt: skip
_OPTIONS = ("HAS_WEIGHT", "HAS_SCALE", "HAS_SHIFT", "SILU")


def _case(
    kernel: str, tile: config.TileConfig, channels_last: bool, one_read: bool, dtype: str, far: bool = False
) -> AotCase:
    pointers = tuple(f"{name}_ptr" for name in _POINTERS[kernel])
    types = dict.fromkeys(pointers, f"*{dtype}")
    types |= dict.fromkeys(("rstd_ptr", "partial_dp_ptr", "partial_dp_xhat_ptr"), "*fp32")
    sizes = {"BLOCK_C": tile.block_c, "BLOCK_R": tile.block_r, "CHANNELS_LAST": channels_last}
    sizes |= {"ONE_READ": one_read, "FAR": far}
    layout = f"{'_channels_last' if channels_last else ''}{'' if one_read else '_two_reads'}{'_far' if far else ''}"
    return AotCase(
        name=f"rms_norm_silu_{kernel}_{tile.block_c}x{tile.block_r}{layout}_{dtype}",
        kernel=kernel,
        signature=types | dict.fromkeys(_SIZES, "i32") | {"eps": "fp32"},
        constants=sizes | dict.fromkeys(_OPTIONS, True),
        divisible=pointers,
        num_warps=tile.num_warps,
        # The ptxas of Triton 3.6 stops at 96 registers here and keeps one pair on the stack; newer ones do not.
        max_spills=0 if one_read else 16,
    )


def aot() -> Iterator[AotCase]:
    for kernel in _POINTERS:
        for channels_last in (False, True):
            tiles = config.tiles(channels_last, backward=kernel == "backward_kernel")
            for tile in tiles:
                yield _case(kernel, tile, channels_last, True, "bf16")
            yield _case(kernel, tiles[-1], channels_last, False, "bf16")
            yield _case(kernel, tiles[-1], channels_last, True, "fp32")
        yield _case(kernel, config.tiles(False, kernel == "backward_kernel")[-1], False, True, "bf16", far=True)
