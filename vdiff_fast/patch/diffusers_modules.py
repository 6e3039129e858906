"""The blocks of diffusers' video models: residual blocks, feed-forwards, attention over frames.

Imported only where diffusers is. Forwards follow diffusers 0.42. Each asks at every call whether the parts that it does
itself are what they are known for, and runs the class's own forward where they are not: adapters, offloading, other
processors and hooks may come and go after patching.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from diffusers.models.activations import GEGLU, GELU
from diffusers.models.attention_processor import Attention, AttnProcessor, AttnProcessor2_0
from diffusers.models.resnet import ResnetBlock2D, TemporalResnetBlock
from torch import Tensor, nn
from torch.nn import functional as F

from vdiff_fast.nn.plain import hooked
from vdiff_fast.ops._common.tokens import MAX_HEAD_DIM
from vdiff_fast.ops.geglu import geglu
from vdiff_fast.ops.gelu_tanh import gelu_tanh
from vdiff_fast.ops.temporal_attention import temporal_attention
from vdiff_fast.ops.temporal_attention.api import MAX_FRAMES
from vdiff_fast.patch.fused_class import Forward, Maker, is_fused, unfused_class
from vdiff_fast.patch.norm_silu import left_to_inductor, norm_with_silu
from vdiff_fast.patch.recognise import GROUP_NORM, SILU, computes, inherits_forward, kind_of
from vdiff_fast.patch.report import HOOKED, Finding

# Classes whose transformer blocks attend over frames, and the attribute that lists those blocks; "": the class is one.
OVER_FRAMES = {
    "AnimateDiffTransformer3D": "transformer_blocks",
    "I2VGenXLTransformerTemporalEncoder": "",
    "LatteTransformer3DModel": "temporal_transformer_blocks",
    "TransformerSpatioTemporalModel": "temporal_transformer_blocks",
    "TransformerTemporalModel": "transformer_blocks",
}


def _fuses_norms(block: Any, x: Tensor) -> bool:
    """Whether a residual block's norms and activation are what they were built as."""
    norms = computes(block.norm1, GROUP_NORM) and computes(block.norm2, GROUP_NORM)
    return is_fused(block) and norms and computes(block.nonlinearity, SILU) and not left_to_inductor(x)


def _divided(x: Tensor, factor: float) -> Tensor:
    """x / factor, without a pass for the factor 1 that most models have."""
    return x if factor == 1 else x / factor


def resnet_block_2d(original: type[nn.Module]) -> Forward:
    """Both norms with their SiLU, the second with the time embedding (added, or as scale and shift)."""

    def forward(self: Any, input_tensor: Tensor, temb: Tensor | None = None, *args: Any, **kwargs: Any) -> Tensor:
        if not _fuses_norms(self, input_tensor):
            return original.forward(self, input_tensor, temb, *args, **kwargs)
        x, hidden = input_tensor, norm_with_silu(self.norm1, input_tensor)
        resample = self.upsample if self.upsample is not None else self.downsample
        if resample is not None:
            x, hidden = resample(x), resample(hidden)
        hidden = norm_with_silu(self.norm2, self.conv1(hidden), **_embedded(self, temb))
        hidden = self.conv2(self.dropout(hidden))
        if self.conv_shortcut is not None:
            x = self.conv_shortcut(x.contiguous() if self.training else x)
        return _divided(x + hidden, self.output_scale_factor)

    return forward


def _embedded(block: Any, temb: Tensor | None) -> dict[str, Tensor]:
    """Options of the second norm."""
    if temb is not None and block.time_emb_proj is not None:
        temb = block.time_emb_proj(temb if block.skip_time_act else F.silu(temb))
    if block.time_embedding_norm == "scale_shift":
        if temb is None:
            raise ValueError("ResnetBlock2D with time_embedding_norm='scale_shift' needs temb, got None")
        scale, shift = temb.chunk(2, dim=1)
        return {"scale": scale, "shift": shift}
    return {"add": temb} if block.time_embedding_norm == "default" and temb is not None else {}


def temporal_resnet_block(original: type[nn.Module]) -> Forward:
    """Both norms with their SiLU; the embedding differs from frame to frame and is added before."""

    def forward(self: Any, input_tensor: Tensor, temb: Tensor) -> Tensor:
        if not _fuses_norms(self, input_tensor):
            return original.forward(self, input_tensor, temb)
        hidden = self.conv1(norm_with_silu(self.norm1, input_tensor))
        if self.time_emb_proj is not None:
            hidden = hidden + self.time_emb_proj(F.silu(temb)).movedim(-1, 1)[..., None, None]
        hidden = self.conv2(self.dropout(norm_with_silu(self.norm2, hidden)))
        x = input_tensor if self.conv_shortcut is None else self.conv_shortcut(input_tensor)
        return x + hidden

    return forward


def gated_gelu(original: type[nn.Module]) -> Forward:
    """value * GELU(gate) in one pass."""

    def forward(self: Any, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if not is_fused(self) or left_to_inductor(hidden_states, pointwise=True):
            return original.forward(self, hidden_states, *args, **kwargs)
        return geglu(self.proj(hidden_states))

    return forward


def gelu(original: type[nn.Module]) -> Forward:
    """GELU by tanh in one pass."""

    def forward(self: Any, hidden_states: Tensor) -> Tensor:
        tanh = self.approximate == "tanh"
        if not tanh or not is_fused(self) or left_to_inductor(hidden_states, pointwise=True):
            return original.forward(self, hidden_states)
        return gelu_tanh(self.proj(hidden_states))

    return forward


def attention_over_frames(original: type[nn.Module]) -> Forward:
    """Self-attention over frames, (positions, frames, channels); anything else is left to the module's processor.

    The processor stays where it is, since IP-Adapters, fused projections and others read, replace and restore it.
    """

    def forward(
        self: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        **options: Any,
    ) -> Tensor:
        given = (encoder_hidden_states, attention_mask, *options.values())
        if (
            any(value is not None for value in given)
            or not is_fused(self)
            or not _fits(hidden_states)
            or why_not_frames(self)
        ):
            return original.forward(
                self, hidden_states, encoder_hidden_states=encoder_hidden_states, attention_mask=attention_mask,
                **options,
            )  # fmt: skip
        q, k, v = (
            project(hidden_states).unflatten(-1, (self.heads, -1))[:, :, None]
            for project in (self.to_q, self.to_k, self.to_v)
        )
        # AttnProcessor2_0 leaves the scale to torch.
        scale = self.scale if type(self.processor) is AttnProcessor else None
        out = temporal_attention(q, k, v, scale=scale, eps=1e-6).flatten(2)
        return _divided(self.to_out[1](self.to_out[0](out)), self.rescale_output_factor)

    return forward


def _fits(hidden_states: Tensor) -> bool:
    return hidden_states.dim() == 3 and 0 < hidden_states.shape[1] <= MAX_FRAMES


def why_not_frames(attn: Any) -> str | None:
    """Why the op cannot do what this attention's processor does; asked at every call.

    Who wraps a call may look at torch's attention inside it (diffusers' skipped layers do).
    """
    if hooked(attn):
        return HOOKED
    if type(attn.processor) not in (AttnProcessor, AttnProcessor2_0) or attn.processor.__dict__:
        return f"its processor is {type(attn.processor).__name__}"
    if attn.group_norm is not None or attn.spatial_norm is not None:
        return "attention with a norm of its own"
    if attn.norm_q is not None or attn.norm_k is not None:
        return "attention with norms of queries and keys"
    if attn.residual_connection:
        return "attention with residual_connection"
    if attn.inner_kv_dim != attn.inner_dim:
        return "fewer heads of keys than of queries"
    d = attn.inner_dim // attn.heads
    return f"heads of {d}: not a multiple of 8 up to {MAX_HEAD_DIM}" if d % 8 or d > MAX_HEAD_DIM else None


BLOCKS: dict[type[nn.Module], tuple[str, Maker]] = {
    ResnetBlock2D: ("group_norm_silu", resnet_block_2d),
    TemporalResnetBlock: ("group_norm_silu", temporal_resnet_block),
    GEGLU: ("geglu", gated_gelu),
    GELU: ("gelu_tanh", gelu),
}


def _why_not_block(block: Any) -> str | None:
    if hooked(block):
        return HOOKED
    if isinstance(block, GELU):
        return None if block.approximate == "tanh" else "exact GELU: the op is its approximation by tanh"
    if isinstance(block, GEGLU):
        return None
    if kind_of(block.nonlinearity) != SILU:
        return f"its activation is {type(block.nonlinearity).__name__}"
    for norm in (block.norm1, block.norm2):
        if kind_of(norm) != GROUP_NORM:
            return f"its norm is {type(norm).__name__}, not GroupNorm's forward with a cast"
    return HOOKED if any(map(hooked, (block.norm1, block.norm2, block.nonlinearity))) else None


def find(module: Any, names: Mapping[int, str]) -> Iterator[Finding]:
    """What of one module is known; `names` are the model's, by id of the module."""
    cls, name = unfused_class(module), names[id(module)]
    for base, (op, maker) in BLOCKS.items():
        if inherits_forward(cls, base, "gelu"):
            residual = hasattr(module, "nonlinearity")
            parts = (module.norm1, module.norm2, module.nonlinearity) if residual else (module,)
            covers = tuple(names[id(part)] for part in parts)
            yield Finding(name, op, module, maker, covers, _why_not_block(module))
    attribute = OVER_FRAMES.get(cls.__name__)
    if attribute is None:
        return
    for block in getattr(module, attribute, ()) if attribute else (module,):
        for attn in block.children():
            # With a context of its own it is cross-attention.
            if inherits_forward(unfused_class(attn), Attention) and not attn.is_cross_attention:
                place = names[id(attn)]
                yield Finding(place, "temporal_attention", attn, attention_over_frames, (place,), why_not_frames(attn))
