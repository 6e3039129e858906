"""Training: configuration, loop, checkpoints, samples. Names load when used, since the configuration needs pydantic."""

from __future__ import annotations

import importlib
from typing import Any

_HOME = {
    "Checkpoint": "checkpoint",
    "CheckpointError": "checkpoint",
    "ConfigError": "config",
    "Ema": "ema",
    "NonFiniteLossError": "nonfinite",
    "Objective": "objective",
    "ResumeError": "resuming",
    "TrainConfig": "config",
    "TrainedRun": "generate",
    "Trainer": "trainer",
    "draw_samples": "generate",
    "latest_checkpoint": "checkpoint",
    "load_checkpoint": "checkpoint",
    "load_config": "config",
    "load_run": "generate",
    "save_checkpoint": "checkpoint",
}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
