"""Tables of the rotary embedding as a module."""

from __future__ import annotations

import torch
from torch import Tensor

from vdiff_fast.nn.derived import DerivedBuffers
from vdiff_fast.ops.qk_norm_rope.tables import axis_pairs, grid_tables, rope_tables

Tables = tuple[Tensor, Tensor]


class RotaryTables(DerivedBuffers):
    """cos and sin of the rotary embedding over a grid of 1 to 3 axes; each axis turns its share of the pairs.

    The tables stay float32 whatever the model is cast to: bfloat16 would round the angles of late positions.

    Args:
        head_dim: d, even.
        axes: 1 (frames), 2 (rows, columns) or 3 (frames, rows, columns).
        max_size: longest axis.
        base: see `vdiff_fast.ops.rope_tables`.
    """

    cos: Tensor
    sin: Tensor

    def __init__(self, head_dim: int, axes: int = 1, max_size: int = 1024, base: float = 10000.0) -> None:
        super().__init__()
        self.head_dim, self.axes, self.max_size, self.base = head_dim, axes, max_size, base
        self.reset_parameters()

    def _derive(self, device: torch.device | None) -> dict[str, Tensor]:
        tables = [rope_tables(self.max_size, 2 * p, base=self.base, device=device) for p in self._pairs()]
        return {name: torch.cat([table[i] for table in tables], dim=1) for i, name in enumerate(("cos", "sin"))}

    def _pairs(self) -> list[int]:
        return axis_pairs(self.head_dim, self.axes)

    def forward(self, *sizes: int, device: torch.device | None = None) -> Tables:
        """Tables (prod(sizes), d/2), positions in row-major order, on the device (where they lie if left out).

        Raises:
            ValueError: an axis is longer than the tables.
        """
        if max(sizes) > self.max_size:
            raise ValueError(f"{max(sizes)} positions > {self.max_size} of the rotary tables; raise max_size")
        self._ensure_on(device)
        if self.axes == 1:
            return self.cos[: sizes[0]], self.sin[: sizes[0]]
        pairs = self._pairs()
        return grid_tables(list(zip(self.cos.split(pairs, 1), self.sin.split(pairs, 1))), sizes)

    def extra_repr(self) -> str:
        return f"head_dim={self.head_dim}, axes={self.axes}, base={self.base}"
