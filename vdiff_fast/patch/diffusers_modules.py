"""The blocks of diffusers' video models: residual blocks, feed-forwards, attention over frames.

Imported only where diffusers is. A class is taken for what it is known to be only if it is diffusers' own, not a
subclass; forwards follow diffusers 0.42.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, ClassVar

from diffusers.models.activations import GEGLU, GELU
from diffusers.models.attention_processor import Attention, AttnProcessor, AttnProcessor2_0
from diffusers.models.resnet import ResnetBlock2D, TemporalResnetBlock
from torch import Tensor, nn
from torch.nn import functional as F

from vdiff_fast.ops._common.tokens import MAX_HEAD_DIM
from vdiff_fast.ops.geglu import geglu
from vdiff_fast.ops.gelu_tanh import gelu_tanh
from vdiff_fast.ops.group_norm_silu import group_norm_silu
from vdiff_fast.ops.temporal_attention import temporal_attention
from vdiff_fast.ops.temporal_attention.api import MAX_FRAMES
from vdiff_fast.patch.report import Finding
from vdiff_fast.patch.torch_modules import HOOKED, become, fuse_pair, hooked, uses_of

# Classes whose transformer blocks attend over frames, and the attribute that lists those blocks.
OVER_FRAMES = {
    "AnimateDiffTransformer3D": "transformer_blocks",
    "TransformerTemporalModel": "transformer_blocks",
    "TransformerSpatioTemporalModel": "temporal_transformer_blocks",
    "LatteTransformer3DModel": "temporal_transformer_blocks",
}


def _norm_silu(norm: nn.GroupNorm, x: Tensor, **vectors: Any) -> Tensor:
    return group_norm_silu(x, norm.num_groups, norm.weight, norm.bias, norm.eps, **vectors)


class FusedResnetBlock2D(ResnetBlock2D):
    """Both norms with their SiLU, the second with the time embedding (added, or as scale and shift)."""

    unfused: ClassVar[type[nn.Module]] = ResnetBlock2D

    def forward(self, input_tensor: Tensor, temb: Tensor | None = None, *args: Any, **kwargs: Any) -> Tensor:
        x, hidden = input_tensor, _norm_silu(self.norm1, input_tensor)
        resample = self.upsample if self.upsample is not None else self.downsample
        if resample is not None:
            x, hidden = resample(x), resample(hidden)
        hidden = _norm_silu(self.norm2, self.conv1(hidden), **self._embedded(temb))
        hidden = self.conv2(self.dropout(hidden))
        if self.conv_shortcut is not None:
            x = self.conv_shortcut(x.contiguous() if self.training else x)
        return (x + hidden) / self.output_scale_factor

    def _embedded(self, temb: Tensor | None) -> dict[str, Tensor]:
        """Options of the second norm."""
        if temb is not None and self.time_emb_proj is not None:
            temb = self.time_emb_proj(temb if self.skip_time_act else F.silu(temb))
        if self.time_embedding_norm == "scale_shift":
            if temb is None:
                raise ValueError("ResnetBlock2D with time_embedding_norm='scale_shift' needs temb, got None")
            scale, shift = temb.chunk(2, dim=1)
            return {"scale": scale, "shift": shift}
        return {"add": temb} if self.time_embedding_norm == "default" and temb is not None else {}


class FusedTemporalResnetBlock(TemporalResnetBlock):
    """Both norms with their SiLU; the embedding differs from frame to frame and is added before."""

    unfused: ClassVar[type[nn.Module]] = TemporalResnetBlock

    def forward(self, input_tensor: Tensor, temb: Tensor) -> Tensor:
        hidden = self.conv1(_norm_silu(self.norm1, input_tensor))
        if self.time_emb_proj is not None:
            hidden = hidden + self.time_emb_proj(F.silu(temb)).movedim(-1, 1)[..., None, None]
        hidden = self.conv2(self.dropout(_norm_silu(self.norm2, hidden)))
        x = input_tensor if self.conv_shortcut is None else self.conv_shortcut(input_tensor)
        return x + hidden


class FusedGEGLU(GEGLU):
    """value * GELU(gate) in one pass."""

    unfused: ClassVar[type[nn.Module]] = GEGLU

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return geglu(self.proj(hidden_states))


class FusedGELU(GELU):
    """GELU by tanh in one pass."""

    unfused: ClassVar[type[nn.Module]] = GELU

    def forward(self, hidden_states: Tensor) -> Tensor:
        return gelu_tanh(self.proj(hidden_states))


class FrameAttention:
    """Processor for self-attention over frames, (positions, frames, channels); anything else goes to `unfused`."""

    def __init__(self, unfused: Callable[..., Tensor]) -> None:
        self.unfused = unfused

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> Tensor:
        given = (encoder_hidden_states, attention_mask, *args, *kwargs.values())
        if any(x is not None for x in given) or hidden_states.dim() != 3 or hidden_states.shape[1] > MAX_FRAMES:
            return self.unfused(attn, hidden_states, encoder_hidden_states, attention_mask, temb, *args, **kwargs)
        q, k, v = (
            project(hidden_states).unflatten(-1, (attn.heads, -1))[:, :, None]
            for project in (attn.to_q, attn.to_k, attn.to_v)
        )
        # AttnProcessor2_0 leaves the scale to torch.
        scale = attn.scale if isinstance(self.unfused, AttnProcessor) else None
        out = temporal_attention(q, k, v, scale=scale).flatten(2)
        return attn.to_out[1](attn.to_out[0](out)) / attn.rescale_output_factor


def _attend(attn: Any) -> None:
    attn.processor = FrameAttention(attn.processor)


def _why_not_frames(attn: Attention) -> str | None:
    if type(attn.processor) not in (AttnProcessor, AttnProcessor2_0):
        return f"its processor is {type(attn.processor).__name__}"
    extra = [
        option for option in ("group_norm", "spatial_norm", "norm_q", "norm_k", "residual_connection")
        if getattr(attn, option, None)
    ]  # fmt: skip
    if extra:
        return f"attention with {extra[0]}"
    if attn.inner_kv_dim != attn.inner_dim:
        return "fewer heads of keys than of queries"
    d = attn.inner_dim // attn.heads
    return f"heads of {d}: not a multiple of 8 up to {MAX_HEAD_DIM}" if d % 8 or d > MAX_HEAD_DIM else None


def _attention_over_frames(name: str, module: nn.Module) -> Iterator[Finding]:
    attribute = OVER_FRAMES.get(type(module).__name__)
    for i, block in enumerate(getattr(module, attribute, ())) if attribute else ():
        for key, attn in block.named_children():
            # With a context of its own it is cross-attention.
            if type(attn) is not Attention or attn.is_cross_attention:
                continue
            if isinstance(attn.processor, FrameAttention):
                continue
            place = f"{name}.{attribute}.{i}.{key}".lstrip(".")
            yield Finding(place, "temporal_attention", partial(_attend, attn), _why_not_frames(attn))


BLOCKS: dict[type[nn.Module], tuple[str, type[nn.Module]]] = {
    ResnetBlock2D: ("group_norm_silu", FusedResnetBlock2D),
    TemporalResnetBlock: ("group_norm_silu", FusedTemporalResnetBlock),
    GEGLU: ("geglu", FusedGEGLU),
    GELU: ("gelu_tanh", FusedGELU),
}


def _why_not_block(module: Any) -> str | None:
    parts = [module]
    if isinstance(module, (ResnetBlock2D, TemporalResnetBlock)):
        parts += [module.norm1, module.norm2, module.nonlinearity]
        if type(module.nonlinearity) is not nn.SiLU:
            return f"its activation is {type(module.nonlinearity).__name__}"
    return HOOKED if any(map(hooked, parts)) else None


def _blocks(name: str, module: Any) -> Iterator[Finding]:
    if type(module) not in BLOCKS or (type(module) is GELU and module.approximate != "tanh"):
        return
    op, fused = BLOCKS[type(module)]
    yield Finding(name, op, partial(become, module, fused), _why_not_block(module))


def find(model: nn.Module) -> Iterator[Finding]:
    uses = uses_of(model)
    for name, module in model.named_modules():
        yield from _blocks(name, module)
        yield from _attention_over_frames(name, module)
        if type(module).__module__.startswith("diffusers."):
            norm, act = getattr(module, "conv_norm_out", None), getattr(module, "conv_act", None)
            if norm is not None and act is not None:
                yield from fuse_pair(f"{name}.conv_norm_out".lstrip("."), norm, act, uses)
