"""A network and a data set that train in milliseconds, for the tests of what surrounds them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from vdiff_fast.training import config as configuration


class SmallNet(nn.Module):
    """Two layers over channels with the time between them, dropout, and a buffer: every kind of state."""

    def __init__(self, channels: int = 4, num_classes: int = 0, dropout: float = 0.1) -> None:
        super().__init__()
        self.head = nn.Linear(3, channels)
        self.time = nn.Linear(1, channels)
        self.label = nn.Embedding(num_classes + 1, channels) if num_classes else None
        self.dropout = nn.Dropout(dropout)
        self.tail = nn.Linear(channels, 3)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor, t: Tensor, *, y: Tensor | None = None) -> Tensor:
        if self.training:
            self.calls += 1
        added = self.time(t[:, None].float() / 1000)
        if self.label is not None and y is not None:
            added = added + self.label(y)
        h = torch.nn.functional.silu(self.head(x.movedim(1, -1)) + added[:, None, None, None, :])
        return self.tail(self.dropout(h)).movedim(-1, 1)


class Ramps(Dataset):
    """`count` clips, each a grey ramp that moves; item i is a function of i."""

    num_classes = None

    def __init__(self, count: int = 12, frames: int = 2, size: int = 8) -> None:
        self.count, self.frames, self.size = count, frames, size

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, key: Any) -> dict[str, Any]:
        index = key[1] if isinstance(key, tuple) else key
        ramp = torch.arange(self.size) * 16 + torch.arange(self.frames)[:, None] * 8 + index * 5
        video = (ramp % 256).to(torch.uint8)[None, :, None, :].expand(3, -1, self.size, -1).contiguous()
        return {"video": video, "file": f"clips/ramp_{index}.mp4", "index": index}


def small_config(**overrides: Any) -> configuration.TrainConfig:
    """A configuration of the above; overrides use "__" for the dot."""
    values = {
        "data.source": "ramps", "data.frames": 2, "data.size": 8, "model.name": "tests.training.small:SmallNet",
        "steps": 20, "batch_size": 2, "seed": 3, "optimizer.warmup_steps": 4, "optimizer.lr": 1e-2, "sample.every": 0,
        "checkpoint.every": 0, "log.every": 1, "log.plot_every": 0,
    }  # fmt: skip
    return configuration.load_config(None, values | {key.replace("__", "."): value for key, value in overrides.items()})


def small_trainer(run: Path, *, resume: bool = False, force: bool = False, **overrides: Any) -> Any:
    from vdiff_fast.training.trainer import Trainer

    return Trainer(small_config(**overrides), run, resume=resume, force=force, dataset=Ramps(), show_progress=False)
