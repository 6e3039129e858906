"""Runs of the presets by several ranks: `torchrun --nproc-per-node 2 -m tests.training.scaled FOLDER CASE...`.

A case is `model:strategy` with options after further colons: `checkpointed`, `compiled`, `kept` (gathered parameters
stay until the backward), `accumulated`, `sampled` (the averages are used between steps), `saved` (on the way). Each is
a run FOLDER/CASE; with `--resume` before the cases they go on.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch

from vdiff_fast.training import distributed, load_config
from vdiff_fast.training.trainer import Trainer

STEPS, CLIPS = 4, 12
_OPTIONS: dict[str, dict[str, Any]] = {
    "checkpointed": {"runtime.activation_checkpointing": True},
    "compiled": {"runtime.compile": True},
    "kept": {"runtime.reshard_after_forward": False},
    "accumulated": {"optimizer.accumulate": 2},
    "sampled": {},
    "saved": {"checkpoint.every": 2},
}
ONE = "one"


def case_config(case: str, ranks: int, steps: int = STEPS) -> Any:
    """The configuration of a case on so many ranks: the same clips per step on any number of them."""
    model, strategy, *options = case.split(":")
    values: dict[str, Any] = {
        "data.source": "moving-digits", "data.frames": 2, "data.size": 16, "data.digits": 1, "data.labels": True,
        "model.name": model, "steps": steps, "seed": 3, "optimizer.lr": 1e-3, "optimizer.warmup_steps": 2,
        "ema.decay": 0.9, "log.every": 1, "log.plot_every": 0, "sample.every": 0, "checkpoint.every": 0,
        "runtime.strategy": "ddp" if strategy == ONE else strategy,
    }  # fmt: skip
    if strategy == "hybrid":
        values["runtime.shard_ranks"] = max(1, ranks // 2)
    for option in options:
        values |= _OPTIONS[option]
    return load_config(None, values | {"batch_size": CLIPS // ranks // values.get("optimizer.accumulate", 1)})


def train(case: str, folder: Path, until: int | None = None, *, resume: bool = False, steps: int = STEPS) -> Trainer:
    trainer = Trainer(case_config(case, distributed.world_size(), steps), folder, resume=resume, show_progress=False)
    if "sampled" in case.split(":"):
        # A forward with the averages must leave nothing of them for the next step.
        trainer.fit(until=steps // 2)
        with trainer.ema.applied() as model, torch.no_grad():
            model(torch.randn(1, 3, 2, 16, 16), torch.tensor([5]))
    trainer.fit(until=until)
    return trainer


def main() -> None:
    folder, *cases = sys.argv[1:]
    distributed.start(torch.device("cpu"))
    resume = cases[:1] == ["--resume"]
    for case in cases[resume:]:
        train(case, Path(folder) / case, resume=resume)
    distributed.stop()


if __name__ == "__main__":
    main()
