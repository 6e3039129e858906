"""Calls into the native library. Arguments are the schema's (csrc/ops/q_sample/schema.cpp)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vdiff_fast import _library


def fake_q_sample(x0: Tensor, *arguments: Any) -> Tensor:
    return torch.empty_like(x0)


_library.register_fake("q_sample", fake_q_sample)


def q_sample(*arguments: Any) -> Tensor:
    return torch.ops.vdiff_fast.q_sample.default(*arguments)
