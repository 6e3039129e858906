"""Where the noise of a sampling run comes from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vdiff_fast import ops


@dataclass(frozen=True, eq=False)
class Noise:
    """Counter-based noise: which numbers a run draws, whatever device, batch split or number of ranks it runs on.

    Attributes:
        seed: int or 0-d int64 tensor.
        sample_offset: index of the run's first sample in the whole batch.
        frame_correlation: of the noise of a video's frames, in [0, 1].
        correlation_kind: "mixed" or "progressive"; all four are those of `vf.ops.noise`.
    """

    seed: int | Tensor = 0
    sample_offset: int = 0
    frame_correlation: float = 0.0
    correlation_kind: str = "mixed"

    def frames(self) -> dict[str, Any]:
        """The keyword arguments of an op that say how the noise of frames hangs together."""
        return {"frame_correlation": self.frame_correlation, "correlation_kind": self.correlation_kind}

    def draw(self, shape: Sequence[int], stream: int, dtype: torch.dtype, device: torch.device) -> Tensor:
        """Standard normals of `shape`; stream 0 is x_T and training noise, 1 + i the noise of step i."""
        return ops.noise(
            shape, self.seed, sample_offset=self.sample_offset, stream=stream, dtype=dtype, device=device,
            **self.frames(),
        )  # fmt: skip

    def counters(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """The seed and the sample offset as 0-d tensors on the device, which one CUDA graph reads for every seed."""
        seed = torch.as_tensor(self.seed, dtype=torch.int64, device=device)
        return seed, torch.full((), self.sample_offset, dtype=torch.int64, device=device)


def as_noise(seed: int | Tensor | Noise) -> Noise:
    """A bare seed stands for independent noise of that seed."""
    return seed if isinstance(seed, Noise) else Noise(seed)
