"""Calls into the native library, and the fakes that Triton shares."""

from __future__ import annotations

import torch
from torch import Tensor

from vdiff_fast import _library

Optional = Tensor | None
Parameters = tuple[Optional, Optional, Optional, Optional, float]
Pair = tuple[Tensor, Tensor]


def fake_forward(q: Tensor, k: Tensor, *_: object) -> Pair:
    return q.new_empty(q.shape), k.new_empty(k.shape)


def fake_backward(
    dq: Tensor, dk: Tensor, q: Optional, k: Optional, q_weight: Optional, k_weight: Optional, *_: object
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    q_gradient, k_gradient = (dq.new_empty(0) if w is None else torch.empty_like(w) for w in (q_weight, k_weight))
    return dq.new_empty(dq.shape), dk.new_empty(dk.shape), q_gradient, k_gradient


def fake_inplace(q: Tensor, k: Tensor, *_: object) -> None:
    return None


_library.register_fake("qk_norm_rope_forward", fake_forward)
_library.register_fake("qk_norm_rope_inplace", fake_inplace)
_library.register_fake("qk_norm_rope_backward", fake_backward)


def forward(q: Tensor, k: Tensor, parameters: Parameters) -> Pair:
    return torch.ops.vdiff_fast.qk_norm_rope_forward.default(q, k, *parameters)


def inplace(q: Tensor, k: Tensor, parameters: Parameters) -> None:
    torch.ops.vdiff_fast.qk_norm_rope_inplace.default(q, k, *parameters)


def backward(dq: Tensor, dk: Tensor, q: Optional, k: Optional, parameters: Parameters) -> tuple[Tensor, ...]:
    return torch.ops.vdiff_fast.qk_norm_rope_backward.default(dq, dk, q, k, *parameters)
