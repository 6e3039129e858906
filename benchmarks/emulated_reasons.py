"""Why a pass moves another number of bytes than the least."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_COLUMN_SUMS = (
    "The gradients of the vectors are sums over all rows. Each block writes the sums of its own rows in float32, and "
    "they are added up afterwards: with few rows a block these sums are as large as the tensors."
)
_REASONS: dict[tuple[str, str, str], str] = {
    ("gated_residual", "triton", "backward"): _COLUMN_SUMS,
    ("gated_residual_norm_modulate", "cuda", "backward"): _COLUMN_SUMS,
    ("gated_residual_norm_modulate", "triton", "backward"): _COLUMN_SUMS,
    ("layer_norm_modulate", "cuda", "backward"): _COLUMN_SUMS,
    ("layer_norm_modulate", "triton", "backward"): _COLUMN_SUMS,
    ("rms_norm_silu", "triton", "backward"): _COLUMN_SUMS,
    ("group_norm_silu", "triton", "forward"): (
        "In channels-last memory the statistics are sums over tiles of positions, which are written in float32 for "
        "every channel; the second read of x is answered by the L2."
    ),
    ("timestep_mlp", "cuda", "backward"): "The matrix products of this backward are torch's and are not counted.",
    ("timestep_mlp", "triton", "backward"): "The matrix products of this backward are torch's and are not counted.",
}


def reason(row: Mapping[str, Any]) -> str:
    """Raises KeyError for a pass that nobody has explained."""
    return _REASONS[row["op"], row["backend"], row["direction"]]
