"""Calls into the native library."""

from __future__ import annotations

import torch
from torch import Tensor

from vdiff_fast import _library

Optional = Tensor | None
Options = tuple[Optional, Optional, Optional, Optional, Optional, Optional, bool, float, float]
ParameterGradients = tuple[Tensor, Tensor, Tensor]


def _fake_parameters(x: Tensor, bias: Optional, q_weight: Optional, k_weight: Optional) -> ParameterGradients:
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32

    def like(parameter: Optional) -> Tensor:
        return x.new_empty(0 if parameter is None else parameter.shape, dtype=dtype)

    return like(bias), like(q_weight), like(k_weight)


def fake_forward(q: Tensor, k: Tensor, v: Tensor, *options: object) -> Tensor:
    return q.new_empty(q.shape)


def fake_backward(
    dout: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Optional,
    mask: Optional,
    qw: Optional,
    kw: Optional,
    *_: object,
) -> tuple[Tensor, ...]:
    return (*(q.new_empty(q.shape) for _ in range(3)), *_fake_parameters(q, bias, qw, kw))


def fake_backward_packed(
    dout: Tensor, qkv: Tensor, bias: Optional, mask: Optional, qw: Optional, kw: Optional, *_: object
) -> tuple[Tensor, ...]:
    return (qkv.new_empty(qkv.shape), *_fake_parameters(qkv, bias, qw, kw))


def _fake_context_forward(q: Tensor, *_: object) -> Tensor:
    return q.new_empty(q.shape)


def _fake_context_backward(
    dout: Tensor, q: Tensor, k: Tensor, v: Tensor, mask: Optional, qw: Optional, *_: object
) -> tuple[Tensor, ...]:
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape), _fake_parameters(q, None, qw, None)[1]


_library.register_fake("temporal_attention_context_forward", _fake_context_forward)
_library.register_fake("temporal_attention_context_backward", _fake_context_backward)
_library.register_fake("temporal_attention_forward", fake_forward)
_library.register_fake("temporal_attention_backward", fake_backward)
_library.register_fake("temporal_attention_backward_packed", fake_backward_packed)


def forward(q: Tensor, k: Tensor, v: Tensor, options: Options) -> Tensor:
    return torch.ops.vdiff_fast.temporal_attention_forward.default(q, k, v, *options)


def backward(dout: Tensor, q: Tensor, k: Tensor, v: Tensor, options: Options) -> tuple[Tensor, ...]:
    return torch.ops.vdiff_fast.temporal_attention_backward.default(dout, q, k, v, *options)


def backward_packed(dout: Tensor, qkv: Tensor, options: Options) -> tuple[Tensor, ...]:
    return torch.ops.vdiff_fast.temporal_attention_backward_packed.default(dout, qkv, *options)


def context_forward(
    q: Tensor, k: Tensor, v: Tensor, mask: Optional, q_weight: Optional, scale: float, eps: float
) -> Tensor:
    return torch.ops.vdiff_fast.temporal_attention_context_forward.default(q, k, v, mask, q_weight, scale, eps)


def context_backward(
    dout: Tensor, q: Tensor, k: Tensor, v: Tensor, mask: Optional, q_weight: Optional, scale: float, eps: float
) -> tuple[Tensor, ...]:
    return torch.ops.vdiff_fast.temporal_attention_context_backward.default(dout, q, k, v, mask, q_weight, scale, eps)
