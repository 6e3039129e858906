"""Residual blocks of diffusers' autoencoders whose forward stands between the norm and the SiLU: one row per class.

Each forward asks at every call whether the parts that it does itself are what the row knows, and runs the class's own
forward where they are not.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vdiff_fast.nn.plain import hooked
from vdiff_fast.ops.rms_norm_silu import rms_norm_silu
from vdiff_fast.patch.families.rows import DTYPES, fingerprint, row_of
from vdiff_fast.patch.fused_class import Forward, Maker, is_fused, unfused_class
from vdiff_fast.patch.norm_silu import left_to_inductor, norm_with_silu
from vdiff_fast.patch.recognise import GROUP_NORM, SILU, computes, kind_of
from vdiff_fast.patch.report import HOOKED, Finding

_MODELS = "diffusers.models.autoencoders.autoencoder_kl_"


@dataclass(frozen=True)
class BlockRow:
    """A class, the `fingerprint` of the forward that was read, the op, its forward, and the parts that the op does."""

    module: str
    name: str
    source: str
    op: str
    maker: Maker
    parts: tuple[str, ...] = ("norm1", "norm2", "nonlinearity")


def ltx_resnet(original: type[nn.Module]) -> Forward:
    """RMSNorm over channels, the timestep's scale and shift, SiLU: twice."""

    def forward(
        self: Any,
        inputs: Tensor,
        temb: Tensor | None = None,
        generator: torch.Generator | None = None,
        *causal: bool,
        **options: Any,
    ) -> Tensor:
        if not _fuses_root_mean_squares(self, inputs, temb):
            return original.forward(self, inputs, temb, generator, *causal, **options)
        first, second = _modulation(self, temb)
        x = _rms_silu(self.norm1, inputs, first)
        x = _noisy(self.conv1(x, *causal, **options), self.per_channel_scale1, generator)
        x = self.dropout(_rms_silu(self.norm2, x, second))
        x = _noisy(self.conv2(x, *causal, **options), self.per_channel_scale2, generator)
        if self.norm3 is not None:
            inputs = self.norm3(inputs.movedim(1, -1)).movedim(-1, 1)
        return x + (inputs if self.conv_shortcut is None else self.conv_shortcut(inputs))

    return forward


def _fuses_root_mean_squares(block: Any, x: Tensor, temb: Tensor | None) -> bool:
    norms = (block.norm1, block.norm2)
    vectors = [p for norm in norms for p in norm.parameters()]
    if block.scale_shift_table is not None:
        if temb is None:
            return False
        vectors += [block.scale_shift_table, temb]
    known = all(row_of(norm) is not None and not hooked(norm) for norm in norms)
    return (
        is_fused(block)
        and known
        and computes(block.nonlinearity, SILU)
        and x.dtype in DTYPES
        and all(type(v) in (Tensor, nn.Parameter) and v.dtype == x.dtype for v in vectors)
        and not left_to_inductor(x)
    )


def _modulation(block: Any, temb: Tensor | None) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """scale and shift of both norms."""
    if block.scale_shift_table is None or temb is None:
        return {}, {}
    vectors = temb.unflatten(1, (4, -1)) + block.scale_shift_table[None, ..., None, None, None]
    shift_1, scale_1, shift_2, scale_2 = vectors.unbind(dim=1)
    return {"scale": scale_1, "shift": shift_1}, {"scale": scale_2, "shift": shift_2}


def _rms_silu(norm: Any, x: Tensor, vectors: dict[str, Any]) -> Tensor:
    return rms_norm_silu(x, getattr(norm, "weight", None), eps=norm.eps, **vectors)


def _noisy(x: Tensor, scale: Tensor | None, generator: torch.Generator | None) -> Tensor:
    """One image of noise, the same for every frame and channel, scaled per channel."""
    if scale is None:
        return x
    noise = torch.randn(x.shape[-2:], generator=generator, device=x.device, dtype=x.dtype)
    return x + (noise[None] * scale)[None, :, None]


def magvit_block(original: type[nn.Module]) -> Forward:
    """GroupNorm over frames or clips, SiLU: twice."""

    def forward(self: Any, hidden_states: Tensor) -> Tensor:
        norms = computes(self.norm1, GROUP_NORM) and computes(self.norm2, GROUP_NORM)
        fuses = is_fused(self) and norms and computes(self.nonlinearity, SILU)
        if not fuses or left_to_inductor(hidden_states):
            return original.forward(self, hidden_states)
        shortcut = self.shortcut(hidden_states)
        x = self.conv1(norm_with_silu(self.norm1, hidden_states, per_frame=self.spatial_group_norm))
        x = self.dropout(norm_with_silu(self.norm2, x, per_frame=self.spatial_group_norm))
        out = self.conv2(x) + shortcut
        return out if self.output_scale_factor == 1 else out / self.output_scale_factor

    return forward


ROWS = (
    BlockRow(f"{_MODELS}ltx", "LTXVideoResnetBlock3d", "b8be35ef5d95", "rms_norm_silu", ltx_resnet),
    BlockRow(f"{_MODELS}ltx2", "LTX2VideoResnetBlock3d", "cde8302e8737", "rms_norm_silu", ltx_resnet),
    BlockRow(f"{_MODELS}magvit", "EasyAnimateResidualBlock3D", "231604867a7a", "group_norm_silu", magvit_block),
)
_BY_NAME = {(row.module, row.name): row for row in ROWS}


def find(module: Any, names: Mapping[int, str]) -> Iterator[Finding]:
    """The block's row, if its class has one; `names` are the model's, by id of the module."""
    cls = unfused_class(module)
    row = _BY_NAME.get((cls.__module__, cls.__qualname__))
    if row is None:
        return
    parts = [getattr(module, part) for part in row.parts]
    reason = None
    if fingerprint(cls) != row.source:
        reason = f"the source of {cls.__name__}'s forward is not the one that was read"
    elif kind_of(module.nonlinearity) != SILU:
        reason = f"its activation is {type(module.nonlinearity).__name__}"
    elif any(map(hooked, (module, *parts))):
        reason = HOOKED
    yield Finding(names[id(module)], row.op, module, row.maker, tuple(names[id(part)] for part in parts), reason)
