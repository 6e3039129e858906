"""From which checkpoint a run goes on, and whether its configuration lets it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from vdiff_fast.training import checkpoint as ckpt
from vdiff_fast.training import config as configuration
from vdiff_fast.training.config import TrainConfig


class ResumeError(ValueError):
    """A run cannot be started or resumed as asked; the message names what differs and the way out."""


def resumable(run: Path, config: TrainConfig | None, resume: bool, force: bool) -> tuple[bool, TrainConfig]:
    """Whether there is a checkpoint to go on from, and the configuration to go on with."""
    found = ckpt.latest_checkpoint(run / "checkpoints")
    if found is not None and not resume:
        raise ResumeError(f"{run} holds {found.name}: resume it with --resume, or choose another --out")
    if found is None:
        if config is None:
            raise ResumeError(f"{run} holds no checkpoint to resume, and no configuration was given")
        return False, config
    text, state = ckpt.described(run / "checkpoints")
    saved = configuration.from_mapping(configuration.parse_value(text))
    if config is None:
        return True, saved
    changed = changed_keys(saved, config)
    # Other ranks with the same batch in all are the same run; accumulation is a key of its own.
    ranks = int(os.environ.get("WORLD_SIZE", 1))
    if saved.batch_size * state.get("world_size", 1) == config.batch_size * ranks:
        changed = [key for key in changed if not key.startswith("batch_size:")]
    if changed and not force:
        raise ResumeError(
            f"{run} was trained with another configuration ({'; '.join(changed)}); "
            "restore these keys, or use --force to go on with the new ones"
        )
    return True, config


def _value(config: BaseModel, dotted: str) -> Any:
    value: Any = config
    for part in dotted.split("."):
        value = getattr(value, part)
    return value


def changed_keys(saved: TrainConfig, now: TrainConfig) -> list[str]:
    """ "optimizer.lr: 0.0002 saved, 0.001 now" for every key that would make a resumed run another run.

    A run may be extended: more `steps` change the rates of the steps to come, where they decay, and none that was done.
    """
    changed = []
    for key, field in configuration.fields():
        free = (field.json_schema_extra or {}).get("resume") == "free"
        if key == "steps" and (now.steps >= saved.steps or saved.optimizer.decay == now.optimizer.decay == "constant"):
            free = True
        before, after = _value(saved, key), _value(now, key)
        if not free and before != after:
            changed.append(f"{key}: {before} saved, {after} now")
    return changed
