"""Checkpoints that are whole or absent: written beside, flushed to the disk, renamed.

RUN/checkpoints/step_00001000/
    model.safetensors   weights and buffers
    ema.safetensors     averaged weights; load into the model as they are
    optimizer.pt        optimizer and gradient scaler
    state.json          step, seed, data position, versions
    config.yaml         the configuration
RUN/checkpoints/latest  the name of the newest
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from vdiff_fast._files import WRITING, save_pickle, save_safetensors, whole_folder, write_text
from vdiff_fast.training.distributed import shard_like

_PREFIX, _LATEST = "step_", "latest"


class CheckpointError(ValueError):
    """A checkpoint is missing, damaged, or belongs to another model."""


@dataclass(frozen=True)
class Checkpoint:
    """What one checkpoint holds. `optimizer` has the keys "optimizer" and "scaler"; `state` is plain JSON."""

    model: Mapping[str, Tensor]
    ema: Mapping[str, Tensor]
    optimizer: dict[str, Any]
    state: dict[str, Any]
    config_yaml: str

    @property
    def step(self) -> int:
        return int(self.state["step"])


def _separate(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous tensors on the CPU, each with memory of its own, as safetensors wants them."""
    seen: set[int] = set()
    separate = {}
    for name, tensor in tensors.items():
        tensor = tensor.detach().cpu().contiguous()
        if tensor.data_ptr() in seen:
            tensor = tensor.clone()
        seen.add(tensor.data_ptr())
        separate[name] = tensor
    return separate


def save_checkpoint(folder: Path, checkpoint: Checkpoint, *, keep: int) -> Path:
    """Write `folder`/step_..., point `latest` at it, and remove all but the newest `keep`.

    A process killed at any moment leaves the checkpoints from before whole, and `latest` at one of them.

    Raises:
        OSError: the disk is full; it names the file, and what was written of this checkpoint is removed.
    """
    final = folder / f"{_PREFIX}{checkpoint.step:08d}"
    # A run that went on from an older checkpoint reaches this step again and replaces the folder.
    with whole_folder(final) as writing:
        save_safetensors(writing / "model.safetensors", _separate(checkpoint.model))
        save_safetensors(writing / "ema.safetensors", _separate(checkpoint.ema))
        save_pickle(writing / "optimizer.pt", checkpoint.optimizer)
        write_text(writing / "state.json", json.dumps(checkpoint.state, indent=1) + "\n")
        write_text(writing / "config.yaml", checkpoint.config_yaml)
    write_text(folder / _LATEST, final.name + "\n")
    _prune(folder, keep)
    return final


def _prune(folder: Path, keep: int) -> None:
    current = latest_checkpoint(folder)
    for path in checkpoints(folder)[:-keep]:
        if path != current:
            shutil.rmtree(path)
    for leftover in folder.glob(f"{WRITING}*"):
        shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()


def checkpoints(folder: Path) -> list[Path]:
    """Whole checkpoints, oldest first."""
    return sorted(path for path in folder.glob(f"{_PREFIX}*") if path.is_dir())


def latest_checkpoint(folder: Path) -> Path | None:
    """The checkpoint `latest` names, else the newest whole one, else None."""
    try:
        named = folder / (folder / _LATEST).read_text().strip()
        if named.name.startswith(_PREFIX) and named.is_dir():
            return named
    except OSError:
        pass
    whole = checkpoints(folder)
    return whole[-1] if whole else None


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint onto the CPU.

    Raises:
        CheckpointError: a file of it is missing or cannot be read.
    """
    try:
        return Checkpoint(
            model=load_file(path / "model.safetensors"),
            ema=load_file(path / "ema.safetensors"),
            optimizer=torch.load(path / "optimizer.pt", map_location="cpu", weights_only=True),
            state=json.loads((path / "state.json").read_text()),
            config_yaml=(path / "config.yaml").read_text(),
        )
    except Exception as error:
        raise CheckpointError(f"{path}: cannot be read ({error}); remove it to use the one before") from error


def load_weights(model: torch.nn.Module, weights: Mapping[str, Tensor], path: Path) -> None:
    """Load weights by name.

    Raises:
        CheckpointError: names or shapes differ; the first few are named.
    """
    current = model.state_dict()
    mine = {name: tuple(value.shape) for name, value in current.items()}
    theirs = {name: tuple(value.shape) for name, value in weights.items()}
    differing = sorted(name for name in mine.keys() | theirs.keys() if mine.get(name) != theirs.get(name))
    if differing:
        shown = "; ".join(f"{n}: {theirs.get(n, 'absent')} saved, {mine.get(n, 'absent')} now" for n in differing[:3])
        raise CheckpointError(f"{path}: {len(differing)} of {len(mine)} tensors do not fit this model: {shown}")
    model.load_state_dict({name: shard_like(weights[name], value) for name, value in current.items()})
