"""What tells one set of weights from another, without reading every number of them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

# Numbers that are read of every tensor, evenly spread: any fine-tuning moves some of them.
_SAMPLED = 1024


def fingerprint(config: Mapping[str, Any], weights: Mapping[str, Tensor]) -> str:
    """Hex digest of a configuration and of every tensor's name, shape and 1024 of its numbers.

    Keys of the configuration that begin with "_" say where a model came from, not what it is, and do not count.
    """
    plain = {key: value for key, value in sorted(config.items()) if not key.startswith("_")}
    digest = hashlib.sha256(json.dumps(plain, default=str, sort_keys=True).encode())
    for name, tensor in sorted(weights.items()):
        flat = tensor.detach().reshape(-1)
        step = max(1, flat.numel() // _SAMPLED)
        values = flat[::step][:_SAMPLED].to("cpu", torch.float32).contiguous()
        digest.update(f"{name} {tuple(tensor.shape)}".encode())
        digest.update(values.numpy().tobytes())
    return digest.hexdigest()[:32]
