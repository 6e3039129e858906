"""`vdiff-fast train`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from vdiff_fast.cli.options import TRAIN_FLAGS, parse_settings, with_flags
from vdiff_fast.training import config as configuration


@with_flags(TRAIN_FLAGS)
def train(
    *,
    out: Annotated[Path | None, typer.Option(help="Folder of the run.")] = None,
    config: Annotated[Path | None, typer.Option(help="YAML file; flags win over it.")] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", help="Any key: --set optimizer.betas=[0.9,0.95]")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the newest checkpoint of --out.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Resume although the configuration has changed.")] = False,
    keys: Annotated[bool, typer.Option("--keys", help="List every configuration key and stop.")] = False,
    overrides: dict[str, Any],
) -> None:
    """Train a model on --data and leave checkpoints, metrics and samples in --out."""
    if keys:
        print(configuration.describe())
        return
    if out is None:
        raise ValueError("train: --out is missing: the folder that checkpoints, metrics and samples go to")
    from vdiff_fast.training import distributed
    from vdiff_fast.training.trainer import Trainer

    overrides = overrides | parse_settings(set_ or [])
    chosen = _configuration(out, config, overrides, resume)
    try:
        trainer = Trainer(chosen, out, resume=resume, force=force)
        if trainer.rank == 0:
            _warn(trainer.config)
            print(_summary(trainer))
        trainer.fit()
    finally:
        distributed.stop()


def _configuration(
    out: Path, path: Path | None, overrides: dict[str, Any], resume: bool
) -> configuration.TrainConfig | None:
    """From the file and flags; a resumed run starts from its own configuration unless a file is given."""
    if not resume or path is not None:
        return configuration.load_config(path, overrides)
    from vdiff_fast.training.checkpoint import latest_checkpoint

    saved = latest_checkpoint(out / "checkpoints")
    if saved is not None:
        return configuration.load_config(saved / "config.yaml", overrides) if overrides else None
    started = out / "config.yaml"
    return configuration.load_config(started if started.is_file() else None, overrides)


def _warn(config: configuration.TrainConfig) -> None:
    from vdiff_fast.training.long_runs import strides_note

    note = strides_note(config.data.frames, config.data.all_strides, config.diffusion.masks)
    if note is not None:
        print(f"warning: {note}", file=sys.stderr)


def _summary(trainer: Any) -> str:
    config = trainer.config
    parameters = sum(p.numel() for p in trainer.model.parameters())
    start = f", from step {trainer.step}" if trainer.step else ""
    return (
        f"{config.model.name}: {parameters / 1e6:.2f} M parameters on {trainer.device}, {len(trainer.dataset)} items, "
        f"{config.steps} steps of {trainer.global_batch} clips{start} -> {trainer.run}"
    )
